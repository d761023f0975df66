/* SPDX-License-Identifier: Apache-2.0 */
#include "failure.h"

#include <stdarg.h>
#include <stdio.h>

void failure_set(struct failure *failure, int error, const char *format, ...)
{
    va_list arguments;

    failure->error = error;
    va_start(arguments, format);
    vsnprintf(failure->what, sizeof failure->what, format, arguments);
    va_end(arguments);
}
