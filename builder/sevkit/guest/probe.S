/* SPDX-License-Identifier: Apache-2.0 */
/* The guest program of the KVM probe: what any x86-64 guest needs, in as few bytes as that takes.
 *
 * Runs as the firmware, from the last KiB below 1 MiB: real mode, protected mode, long mode with
 * paging, x87 and SSE, then a write of 0x2a to port 0xf4, which ends QEMU with status 85
 * (isa-debug-exit: value × 2 + 1). Anything that goes wrong halts. host.py holds the assembled
 * bytes; a test assembles this file and compares. */

        .set    BASE, 0xffc00           /* where the first byte is seen, below 1 MiB */
        .set    PML4, 0x1000
        .set    PDPT, 0x2000
        .set    DIRECTORY, 0x3000

        .text
        .code16
first:  cli
        fninit
        xorw    %ax, %ax
        movw    %ax, %ds
        lgdtl   %cs:(gdtr - first + 0xfc00)
        movl    %cr0, %eax
        orb     $1, %al                 /* PE */
        movl    %eax, %cr0
        ljmpl   $8, $(protected - first + BASE)

        .code32
protected:
        movw    $16, %ax
        movw    %ax, %ds
        movw    %ax, %ss
        movl    $(PDPT | 3), PML4       /* present, writable; QEMU's memory starts as zeros */
        movl    $(DIRECTORY | 3), PDPT
        movl    $0x83, DIRECTORY        /* one page of 2 MiB, mapped onto itself */
        movl    $PML4, %eax
        movl    %eax, %cr3
        movl    $0x620, %eax            /* PAE, OSFXSR, OSXMMEXCPT */
        movl    %eax, %cr4
        movl    $0xc0000080, %ecx       /* EFER.LME */
        rdmsr
        orl     $0x100, %eax
        wrmsr
        movl    $0x80000013, %eax       /* PG, ET, MP, PE */
        movl    %eax, %cr0
        ljmpl   $24, $(long - first + BASE)

        .code64
long:   movl    $100000, %ecx
        movq    %rcx, %xmm0
        pxor    %xmm1, %xmm1
1:      paddq   %xmm0, %xmm1
        decl    %ecx
        jnz     1b
        movq    %xmm1, %rax
        movabsq $10000000000, %rdx
        cmpq    %rdx, %rax
        jne     2f
        movb    $0x2a, %al
        outb    %al, $0xf4
2:      hlt
        jmp     2b

        .balign 8
gdt:    .quad   0
        .quad   0x00cf9b000000ffff      /*  8: code, 32 bit, flat */
        .quad   0x00cf93000000ffff      /* 16: data, flat */
        .quad   0x00af9b000000ffff      /* 24: code, 64 bit */
gdtr:   .word   gdtr - gdt - 1
        .long   gdt - first + BASE

        .org    0x3f0                   /* the reset vector */
        .code16
        jmp     first
        .org    0x400, 0xf4
