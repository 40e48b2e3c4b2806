//! The floating-point modes that a host process may have set for the thread that calls the engine.

#![cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]

/// While it lives, this thread turns subnormal results into zero, and takes subnormal operands for zero.
#[derive(Debug)]
pub(crate) struct FlushToZero {
    saved: u64,
}

impl FlushToZero {
    pub(crate) fn set() -> Self {
        let saved = read();
        write(saved | FLUSH);
        assert!(Self::is_on());
        FlushToZero { saved }
    }

    pub(crate) fn is_on() -> bool {
        std::hint::black_box(f32::MIN_POSITIVE) * std::hint::black_box(0.5) == 0.0
    }
}

impl Drop for FlushToZero {
    fn drop(&mut self) {
        write(self.saved);
    }
}

/// Flush-to-zero and denormals-are-zero of MXCSR.
#[cfg(target_arch = "x86_64")]
const FLUSH: u64 = 1 << 15 | 1 << 6;
/// FZ of FPCR, which does both.
#[cfg(target_arch = "aarch64")]
const FLUSH: u64 = 1 << 24;

#[cfg(target_arch = "x86_64")]
fn read() -> u64 {
    let mut csr = 0u32;
    // SAFETY: stores the 32-bit MXCSR to a valid address; every x86-64 has SSE.
    unsafe { std::arch::asm!("stmxcsr [{}]", in(reg) &mut csr, options(nostack, preserves_flags)) };
    u64::from(csr)
}

#[cfg(target_arch = "x86_64")]
fn write(value: u64) {
    let csr = value as u32;
    // SAFETY: loads MXCSR from a valid address with what was read from it and two defined bits.
    unsafe { std::arch::asm!("ldmxcsr [{}]", in(reg) &csr, options(nostack)) };
}

#[cfg(target_arch = "aarch64")]
fn read() -> u64 {
    let value: u64;
    // SAFETY: reads FPCR, which is accessible at every exception level.
    unsafe { std::arch::asm!("mrs {}, fpcr", out(reg) value, options(nomem, nostack)) };
    value
}

#[cfg(target_arch = "aarch64")]
fn write(value: u64) {
    // SAFETY: writes FPCR with what was read from it and one defined bit.
    unsafe { std::arch::asm!("msr fpcr, {}", in(reg) value, options(nostack)) };
}
