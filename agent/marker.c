/* SPDX-License-Identifier: Apache-2.0 */
#include "marker.h"

#include <stdalign.h>
#include <stddef.h>
#include <sys/mman.h>

static alignas(MARKER_BYTES) uint8_t page[MARKER_BYTES];

bool marker_keep(uint64_t seed)
{
    if (mlock(page, sizeof page) != 0)
        return false;
    for (size_t i = 0; i < MARKER_BYTES / 8; i++) {
        seed += UINT64_C(0x9E3779B97F4A7C15);
        uint64_t number = seed;
        number = (number ^ number >> 30) * UINT64_C(0xBF58476D1CE4E5B9);
        number = (number ^ number >> 27) * UINT64_C(0x94D049BB133111EB);
        number ^= number >> 31;
        for (size_t j = 0; j < 8; j++)
            ((volatile uint8_t *)page)[8 * i + j] = (uint8_t)(number >> 8 * j);
    }
    return true;
}
