//! The floating-point environment: a host process may run with flush-to-zero or another rounding mode, and
//! then sums differ. Whoever computes enters the default environment first and restores the host's after.

/// While it lives, this thread rounds to nearest even and keeps subnormals.
#[derive(Debug)]
pub struct DefaultFloatEnv {
    saved: u64,
    // The environment belongs to the thread that entered it.
    not_send: std::marker::PhantomData<*const ()>,
}

impl DefaultFloatEnv {
    /// Saves this thread's environment and enters the default one.
    pub fn enter() -> Self {
        let saved = read();
        if saved & MODE != DEFAULT {
            write(DEFAULT);
        }
        DefaultFloatEnv { saved, not_send: std::marker::PhantomData }
    }
}

impl Drop for DefaultFloatEnv {
    fn drop(&mut self) {
        write(self.saved);
    }
}

/// The bits of MXCSR that are no sticky exception flags.
#[cfg(target_arch = "x86_64")]
const MODE: u64 = !0x3f;
/// FPCR has no flags; those are in FPSR.
#[cfg(not(target_arch = "x86_64"))]
const MODE: u64 = !0;

/// MXCSR after reset: all exceptions masked, round to nearest, no flushing.
#[cfg(target_arch = "x86_64")]
const DEFAULT: u64 = 0x1f80;
/// FPCR after reset.
#[cfg(not(target_arch = "x86_64"))]
const DEFAULT: u64 = 0;

#[cfg(all(target_arch = "x86_64", not(miri)))]
fn read() -> u64 {
    let mut csr = 0u32;
    // SAFETY: stores the 32-bit MXCSR to a valid address; every x86-64 has SSE.
    unsafe { std::arch::asm!("stmxcsr [{}]", in(reg) &mut csr, options(nostack, preserves_flags)) };
    u64::from(csr)
}

#[cfg(all(target_arch = "x86_64", not(miri)))]
fn write(value: u64) {
    let csr = value as u32;
    // SAFETY: loads MXCSR with a value read from it, or with its reset value, from a valid address. The exception
    // flags change with it, so they are not declared preserved.
    unsafe { std::arch::asm!("ldmxcsr [{}]", in(reg) &csr, options(nostack)) };
}

#[cfg(all(target_arch = "aarch64", not(miri)))]
fn read() -> u64 {
    let value: u64;
    // SAFETY: reads FPCR, which is accessible at every exception level.
    unsafe { std::arch::asm!("mrs {}, fpcr", out(reg) value, options(nomem, nostack)) };
    value
}

#[cfg(all(target_arch = "aarch64", not(miri)))]
fn write(value: u64) {
    // SAFETY: writes FPCR with a value read from it, or with its reset value.
    unsafe { std::arch::asm!("msr fpcr, {}", in(reg) value, options(nostack)) };
}

// Miri interprets no assembly, and always computes in the default environment.
#[cfg(any(miri, not(any(target_arch = "x86_64", target_arch = "aarch64"))))]
fn read() -> u64 {
    DEFAULT
}

#[cfg(any(miri, not(any(target_arch = "x86_64", target_arch = "aarch64"))))]
fn write(_: u64) {}

#[cfg(all(test, not(miri), any(target_arch = "x86_64", target_arch = "aarch64")))]
mod tests {
    use super::*;
    use std::hint::black_box;

    /// Flush-to-zero and denormals-are-zero, and the sticky flag of an invalid operation.
    #[cfg(target_arch = "x86_64")]
    const FLUSH: u64 = DEFAULT | 1 << 15 | 1 << 6 | 1;
    #[cfg(target_arch = "aarch64")]
    const FLUSH: u64 = 1 << 24;

    #[test]
    fn the_default_is_entered_and_the_hosts_mode_restored() {
        let original = read();
        write(FLUSH);
        let half = || black_box(f32::MIN_POSITIVE) * black_box(0.5);
        assert_eq!(half(), 0.0);
        let host = read();
        {
            let _env = DefaultFloatEnv::enter();
            assert!(half() > 0.0);
        }
        assert_eq!(read(), host, "with the flags that the host's own sums have left");
        assert_eq!(half(), 0.0);
        write(original);
    }
}
