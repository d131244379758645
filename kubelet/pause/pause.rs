//! The process of a pod's sandbox: it holds the namespaces, buries dead children, and ends when it is told to.
//!
//! Built by build.rs without std and libc, so that it is a static program of a few kilobytes and needs no image beneath it.
//! It talks to the kernel directly, which is why it has to be unsafe.

#![no_std]
#![no_main]

use core::arch::asm;

const SIGHUP: u64 = 1;
const SIGINT: u64 = 2;
const SIGTERM: u64 = 15;
const SIGCHLD: u64 = 17;
const SIG_BLOCK: usize = 0;
const WNOHANG: usize = 1;

/// The numbers of system calls.
#[cfg(target_arch = "x86_64")]
mod number {
    pub const SIGPROCMASK: usize = 14;
    pub const WAIT4: usize = 61;
    pub const SIGTIMEDWAIT: usize = 128;
    pub const EXIT_GROUP: usize = 231;
}

#[cfg(target_arch = "aarch64")]
mod number {
    pub const SIGPROCMASK: usize = 135;
    pub const WAIT4: usize = 260;
    pub const SIGTIMEDWAIT: usize = 137;
    pub const EXIT_GROUP: usize = 94;
}

/// Safety: the kernel must find at the pointers among the arguments what the call says.
#[cfg(target_arch = "x86_64")]
unsafe fn call(number: usize, a: usize, b: usize, c: usize, d: usize) -> isize {
    let result;
    unsafe {
        asm!("syscall", inlateout("rax") number => result, in("rdi") a, in("rsi") b, in("rdx") c, in("r10") d,
            lateout("rcx") _, lateout("r11") _, options(nostack));
    }
    result
}

/// Safety: the kernel must find at the pointers among the arguments what the call says.
#[cfg(target_arch = "aarch64")]
unsafe fn call(number: usize, a: usize, b: usize, c: usize, d: usize) -> isize {
    let result;
    unsafe {
        asm!("svc 0", in("x8") number, inlateout("x0") a => result, in("x1") b, in("x2") c, in("x3") d, options(nostack));
    }
    result
}

/// Where the kernel begins.
///
/// Signals are blocked and waited for instead of handled: the kernel keeps blocked ones even for process 1, for which it drops
/// those without a handler, and no handler means no return trampoline.
#[unsafe(no_mangle)]
pub extern "C" fn _start() -> ! {
    let bit = |signal: u64| 1u64 << (signal - 1);
    let awaited = bit(SIGHUP) | bit(SIGINT) | bit(SIGTERM) | bit(SIGCHLD);
    let set = &raw const awaited as usize;
    // SAFETY: the set lives as long as this function, which doesn't return; its size in bytes is the last argument.
    unsafe {
        call(number::SIGPROCMASK, SIG_BLOCK, set, 0, 8);
        loop {
            match call(number::SIGTIMEDWAIT, set, 0, 0, 8) as u64 {
                SIGCHLD => while call(number::WAIT4, usize::MAX, 0, WNOHANG, 0) > 0 {},
                SIGINT | SIGTERM => {
                    call(number::EXIT_GROUP, 0, 0, 0, 0);
                }
                _ => {}
            }
        }
    }
}

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}
