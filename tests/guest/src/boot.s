# From the PVH entry point (32-bit, paging off) to ring 3 in long mode.
#
# Ring 0 may be interpreted one instruction at a time by the host, by an interpreter that knows the plain ones only:
# everything that can be built by the linker or by the program in ring 3 is not built here.

    .section .note.Xen, "a", @note
    .align 4
    .long 4                         # size of the name
    .long 8                         # size of the value
    .long 18                        # XEN_ELFNOTE_PHYS32_ENTRY
    .asciz "Xen"
    .quad pvh_start

    .section .boot, "ax"
    .code32
    .global pvh_start
pvh_start:
    cli
    mov %ebx, start_info            # struct hvm_start_info
    mov $0xff, %al                  # no 8259 interrupt, should there be such a thing
    out %al, $0x21
    out %al, $0xa1
    mov $gdt_pointer, %eax
    lgdt (%eax)
    mov $bsp_start, %esi

    # The boot processor's task segment descriptor: its base is scattered over the descriptor.
    mov $bsp_task_segment, %eax
    mov %eax, %ecx
    shl $16, %ecx
    or $bsp_task_segment_end - bsp_task_segment - 1, %ecx
    mov %ecx, gdt_task_segments
    mov %eax, %ecx
    shr $16, %ecx
    and $0xff, %ecx
    or $0x8900, %ecx
    and $0xff000000, %eax
    or %eax, %ecx
    mov %ecx, gdt_task_segments + 4

    # %esi: struct cpu_start
    .global enter_long_mode
enter_long_mode:
    mov %cr4, %eax
    or $0x620, %eax                 # PAE, OSFXSR, OSXMMEXCPT
    mov %eax, %cr4
    mov $page_map, %eax
    mov %eax, %cr3
    mov $0xc0000080, %ecx           # EFER
    rdmsr
    or $0x100, %eax                 # LME
    wrmsr
    mov %cr0, %eax
    and $0x9ffffff3, %eax           # CD, NW, TS, EM off
    or $0x80000023, %eax            # PG, NE, MP, PE on
    mov %eax, %cr0
    ljmp $0x10, $long_mode

    .code64
long_mode:
    mov %esi, %esi
    mov 24(%rsi), %eax
    mov 16(%rsi), %rsp
    mov $idt_pointer, %ecx
    lidt (%rcx)
    ltr %ax
    mov 28(%rsi), %edi              # the argument of the entry point
    mov $0x2b, %eax
    mov %eax, %ds
    mov %eax, %es
    push %rax                       # user data segment
    mov 8(%rsi), %rax
    push %rax                       # stack
    mov $0x3202, %eax
    push %rax                       # IOPL 3, interrupts on
    mov $0x33, %eax
    push %rax                       # user code segment
    mov (%rsi), %rax
    push %rax                       # entry point
    iretq

    # struct cpu_start: u64 entry, u64 stack, u64 ring0_stack, u32 task_segment, u32 argument.
    .section .tables, "aw"
    .align 16
bsp_start:
    .quad guest_main
    .quad bsp_stack_top - 8         # as after a call
    .quad ring0_stacks + 4096
    .long 0x40
    .long 0

    .align 16
gdt_pointer:
    .word gdt_end - gdt - 1
    .quad gdt

    .align 16
    .global idt_pointer
idt_pointer:
    .word 256 * 16 - 1
    .quad interrupt_descriptors

    # The order and the selectors are those of x86-64 Linux: a hypervisor without hardware support may expect them.
    .align 16
    .global gdt
gdt:
    .quad 0
    .quad 0x00cf9b000000ffff        # 0x08 ring 0, 32-bit code
    .quad 0x00af9b000000ffff        # 0x10 ring 0, 64-bit code
    .quad 0x00cf93000000ffff        # 0x18 ring 0, data
    .quad 0x00cffb000000ffff        # 0x23 ring 3, 32-bit code
    .quad 0x00cff3000000ffff        # 0x2b ring 3, data
    .quad 0x00affb000000ffff        # 0x33 ring 3, 64-bit code
    .quad 0
    .global gdt_task_segments
gdt_task_segments:                  # 0x40 + 16 * cpu
    .fill 2 * 8, 8, 0
gdt_end:

    # The low 4 GiB, mapped one to one, for ring 3 to read, write and execute. Ring 3 adds what lies above.
    .align 4096
    .global page_map
page_map:
    .quad page_directory_pointers + 7
    .fill 511, 8, 0
    .global page_directory_pointers
page_directory_pointers:
    .quad page_directories + 0x0007
    .quad page_directories + 0x1007
    .quad page_directories + 0x2007
    .quad page_directories + 0x3007
    .fill 508, 8, 0
page_directories:
    .set page, 0
    .rept 2048
    .quad page + 0xe7               # present, writable, user, accessed, dirty, 2 MiB
    .set page, page + 0x200000
    .endr

    # Task segments. The boot processor's has a permission map that gives ring 3 all ports: IOPL 3 would do, but a
    # hypervisor that runs ring 3 in its own ring 3 may not keep IOPL.
    .align 128
bsp_task_segment:
    .long 0
    .quad ring0_stacks + 4096
    .fill 102 - 12, 1, 0
    .word 104
    .fill 65536 / 8, 1, 0
    .byte 0xff
bsp_task_segment_end:

    # The others: 104 bytes each, 128 apart. Only the ring 0 stack pointer is used.
    .align 128
    .global task_segments
task_segments:
    .set cpu, 0
    .rept 8
    .long 0
    .quad ring0_stacks + 4096 * (cpu + 1)
    .fill 102 - 12, 1, 0
    .word 104
    .fill 128 - 104, 1, 0
    .set cpu, cpu + 1
    .endr

    .section .bss.boot, "aw", @nobits
    .align 4096
    .global start_info
start_info:
    .skip 8
    .align 4096
    .global ring0_stacks
ring0_stacks:
    .skip 4096 * 8
    .skip 256 * 1024
bsp_stack_top:
