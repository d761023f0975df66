/* SPDX-License-Identifier: Apache-2.0 */
/* Giving back the pages of a large static buffer. */
#ifndef SEVKIT_MEMORY_H
#define SEVKIT_MEMORY_H

#include <stddef.h>

/* Lets go of the pages that lie wholly inside; they read as zero afterwards, so that nothing that
 * was there may be needed any more. */
void memory_release(void *start, size_t size);

#endif
