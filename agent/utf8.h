/* SPDX-License-Identifier: Apache-2.0 */
/* UTF-8 as Unicode table 3-7 has it: no overlong forms, no surrogates, nothing over U+10FFFF. */
#ifndef SEVKIT_UTF8_H
#define SEVKIT_UTF8_H

#include <stddef.h>
#include <stdint.h>

/* The length in bytes of the well-formed character at `text`, 0 when there is none. */
size_t utf8_character(const char *text, size_t length);

/* Writes `code` (a scalar value) to `out`; returns the number of bytes, 1 to 4. */
size_t utf8_encode(uint32_t code, char out[4]);

#endif
