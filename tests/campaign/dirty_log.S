# A guest of its own, firmware and all: it goes on writing to two groups of pages until it is told to stop.
#
# PAGES         number of pages in a group
# LOW, HIGH     the groups, in the first and in the second block of memory
# AGAIN         16 MiB that the first NMI dirties once more, so that a pass follows in which the guest still runs
# TAIL          2 MiB that are not zero, with HIGH in them, so that the first pass ends slowly
# OTHER         with SPREAD, a page of the second block that the first NMI dirties: long sent, so new to the migration
#
# The second NMI ends all writing. NMIS counts them, for the host to see.

        .set BASE, 0xffff0000
        .set NMIS, 0x30000
        .set AGAIN, 0x1000000
        .set AGAIN_END, 0x2000000
        .set TAIL, 0x5e00000
        .set TAIL_END, 0x6000000
        .set OTHER, 0x5000000

        .code16
entry:  cli
        lgdtl   %cs:gdtr
        movl    %cr0, %eax
        orb     $1, %al
        movl    %eax, %cr0
        ljmpl   $8, $(BASE + flat)

        .code32
flat:   movw    $16, %ax
        movw    %ax, %ds
        movw    %ax, %es
        movw    %ax, %ss
        movl    $(NMIS + 4096), %esp
        lidt    BASE + idtr
        movl    $0x1ff, 0xfee000f0      # the local APIC is on, and its LINT1 is the NMI
        movl    $0x400, 0xfee00360
        movl    $AGAIN, %edi
1:      movl    %edi, (%edi)
        addl    $4096, %edi
        cmpl    $AGAIN_END, %edi
        jb      1b
        movl    $TAIL, %edi
1:      movl    %edi, (%edi)
        addl    $4096, %edi
        cmpl    $TAIL_END, %edi
        jb      1b

        xorl    %eax, %eax
write:  incl    %eax
        movl    $LOW, %edi
        movl    $HIGH, %esi
        movl    $PAGES, %ecx
1:      movl    %eax, (%edi)
        movl    %eax, (%esi)
        addl    $4096, %edi
        addl    $4096, %esi
        decl    %ecx
        jnz     1b
        jmp     write

nmi:    incl    NMIS
        cmpl    $1, NMIS
        jne     stop
        pushl   %edi
        movl    $AGAIN, %edi
1:      movl    %eax, 4(%edi)
        addl    $4096, %edi
        cmpl    $AGAIN_END, %edi
        jb      1b
        .if SPREAD
        movl    %eax, OTHER
        .endif
        popl    %edi
        iretl

stop:   cli
        hlt
        jmp     stop

        .balign 8
gdt:    .quad 0
        .quad 0x00cf9b000000ffff
        .quad 0x00cf93000000ffff
gdtr:   .word 23
        .long BASE + gdt
        .balign 8
idt:    .quad 0, 0
        .word nmi - entry, 8, 0x8e00, 0xffff
idtr:   .word 23
        .long BASE + idt

        .org 0xfff0
        .code16
        jmp     entry
        .org 0xffff
        .byte 0
