//! The floating-point modes that a host process may have set for the thread that calls the engine.

/// While it lives, this thread takes subnormal operands for zero and turns subnormal results into zero.
#[cfg(target_arch = "x86_64")]
#[derive(Debug)]
pub(crate) struct FlushToZero {
    saved: u32,
}

#[cfg(target_arch = "x86_64")]
impl FlushToZero {
    pub(crate) fn set() -> Self {
        const FLUSH_TO_ZERO: u32 = 1 << 15;
        const DENORMALS_ARE_ZERO: u32 = 1 << 6;
        let mut saved = 0u32;
        // SAFETY: stores the 32-bit MXCSR to a valid address; every x86-64 has SSE.
        unsafe { std::arch::asm!("stmxcsr [{}]", in(reg) &mut saved, options(nostack, preserves_flags)) };
        load(saved | FLUSH_TO_ZERO | DENORMALS_ARE_ZERO);
        assert!(Self::is_on());
        FlushToZero { saved }
    }

    pub(crate) fn is_on() -> bool {
        std::hint::black_box(f32::MIN_POSITIVE) * std::hint::black_box(0.5) == 0.0
    }
}

#[cfg(target_arch = "x86_64")]
impl Drop for FlushToZero {
    fn drop(&mut self) {
        load(self.saved);
    }
}

#[cfg(target_arch = "x86_64")]
fn load(csr: u32) {
    // SAFETY: loads MXCSR from a valid address with what was read from it and two defined bits.
    unsafe { std::arch::asm!("ldmxcsr [{}]", in(reg) &csr, options(nostack, preserves_flags)) };
}
