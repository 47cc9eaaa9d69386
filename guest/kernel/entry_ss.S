/* SPDX-License-Identifier: GPL-2.0 */
/*
 * Included into error_entry of arch/x86/entry/entry_64.S, on its way from user mode; %rax is free there.
 *
 * An interrupt or exception that comes from a program leaves a null selector in SS, a system call the kernel's
 * own. The processor does not care, but an emulator keeps its translations by what SS holds, and translates what
 * the kernel runs in both cases twice. Back in the program SS comes from the frame, as ever.
 */
	movl	$__KERNEL_DS, %eax
	movl	%eax, %ss
