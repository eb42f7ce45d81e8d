# Where an application processor starts: in real mode, at the beginning of a page below 1 MiB to which this is copied.

    .section .rodata.trampoline, "a"
    .global trampoline
    .global trampoline_end
    .code16
trampoline:
    cli
    mov %cs, %ax
    mov %ax, %ds
    lgdtl trampoline_gdt_pointer - trampoline
    mov %cr0, %eax
    or $1, %eax
    mov %eax, %cr0
    ljmpl $0x08, $protected_mode

    .align 8
trampoline_gdt_pointer:
    .word gdt_end - gdt - 1
    .long gdt
trampoline_end:

    .section .boot, "ax"
    .code32
protected_mode:
    mov $0x18, %eax
    mov %eax, %ds
    mov %eax, %es
    mov %eax, %ss
    mov ap_start, %esi
    jmp enter_long_mode

    .section .bss.trampoline, "aw", @nobits
    .align 8
    .global ap_start
ap_start:
    .skip 8
