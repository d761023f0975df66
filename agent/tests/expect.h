/* SPDX-License-Identifier: Apache-2.0 */
/* A failed expectation names itself and its place; the program goes on and exits with 1. */
#ifndef SEVKIT_EXPECT_H
#define SEVKIT_EXPECT_H

#include <stdio.h>

static int expect_failures;

#define EXPECT(condition, subject)                                                          \
    do {                                                                                    \
        if (!(condition)) {                                                                 \
            fprintf(stderr, "%s:%d: not so: %s (%s)\n", __FILE__, __LINE__, #condition,      \
                    (subject));                                                             \
            expect_failures++;                                                              \
        }                                                                                   \
    } while (0)

#endif
