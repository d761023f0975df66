/* SPDX-License-Identifier: Apache-2.0 */
/* A page of the agent's memory that a host may look for, and must not find when it is encrypted. */
#ifndef SEVKIT_MARKER_H
#define SEVKIT_MARKER_H

#include <stdbool.h>
#include <stdint.h>

enum { MARKER_BYTES = 4096 };

/* Fills the page with the numbers of SplitMix64 (Steele, Lea, Flood: Fast Splittable Pseudorandom
 * Number Generators, 2014) from the seed, and keeps it in memory. False with errno set. */
bool marker_keep(uint64_t seed);

#endif
