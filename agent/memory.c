/* SPDX-License-Identifier: Apache-2.0 */
#include "memory.h"

#include <stdint.h>
#include <sys/mman.h>

enum { PAGE_BYTES = 4096 };

void memory_release(void *start, size_t size)
{
    uint8_t *bytes = start;
    const size_t skipped = -(uintptr_t)bytes % PAGE_BYTES;

    if (size >= skipped + PAGE_BYTES)
        madvise(bytes + skipped, (size - skipped) / PAGE_BYTES * PAGE_BYTES, MADV_DONTNEED);
}
