# What runs in ring 0 after the start: count an interrupt and end it, or hand an exception to ring 3.

    .section .text.interrupts, "ax"
    .code64

    # Vectors 0x20 to 0x5f: one count each.
    .align 16
    .global interrupt_stubs
interrupt_stubs:
    .set vector, 0x20
    .rept 64
    .align 16
    incq interrupt_counts + 8 * vector(%rip)
    jmp end_of_interrupt
    .set vector, vector + 1
    .endr

end_of_interrupt:
    push %rax
    mov $0xfee000b0, %eax
    movl $0, (%rax)
    pop %rax
    iretq

    .global spurious_interrupt
spurious_interrupt:
    iretq

    # Vectors 0 to 31: note what happened, then continue in ring 3.
    .align 16
    .global exception_stubs
exception_stubs:
    .set vector, 0
    .rept 32
    .align 16
    .if vector == 8 || (vector >= 10 && vector <= 14) || vector == 17 || vector == 21 || vector == 29 || vector == 30
    .else
    push $0
    .endif
    push $vector
    jmp exception
    .set vector, vector + 1
    .endr

exception:
    mov %cr2, %rax
    mov %rax, exception_record + 32(%rip)
    pop %rax
    mov %rax, exception_record(%rip)
    pop %rax
    mov %rax, exception_record + 8(%rip)
    pop %rax
    mov %rax, exception_record + 16(%rip)
    pop %rax
    mov %rax, exception_record + 24(%rip)
    mov $0x2b, %eax
    push %rax
    mov $exception_stack_top - 8, %eax # as after a call
    push %rax
    mov $0x3202, %eax
    push %rax
    mov $0x33, %eax
    push %rax
    mov $report_exception, %eax
    push %rax
    iretq

    .section .bss.interrupts, "aw", @nobits
    .align 64
    .global interrupt_counts
interrupt_counts:
    .skip 256 * 8
    .global exception_record
exception_record:
    .skip 5 * 8
    .align 16
    .global interrupt_descriptors
interrupt_descriptors:
    .skip 256 * 16
    .skip 16384
exception_stack_top:
