//! The floating-point mode of a thread, for tests of rule R4 of the contract.

/// Makes the calling thread flush subnormal results to zero and take subnormal operands as zero, or stops it. Nothing
/// happens on a CPU other than x86-64 and AArch64.
///
/// For tests only: the compiler assumes the default mode, so code that depends on subnormals may do either. The contract's
/// code does not.
pub fn flush_subnormals(on: bool) {
    #[cfg(target_arch = "x86_64")]
    {
        const FLUSH_AND_ZERO: u32 = 1 << 15 | 1 << 6;
        let mut mode = 0u32;
        // SAFETY: stores and loads the control register through a local; rounding, masks and flags stay as they are.
        unsafe {
            std::arch::asm!("stmxcsr [{0}]", in(reg) &raw mut mode, options(nostack, preserves_flags));
            mode = if on { mode | FLUSH_AND_ZERO } else { mode & !FLUSH_AND_ZERO };
            std::arch::asm!("ldmxcsr [{0}]", in(reg) &raw const mode, options(nostack, preserves_flags));
        }
    }
    #[cfg(target_arch = "aarch64")]
    {
        const FLUSH: u64 = 1 << 24;
        let mut mode: u64;
        // SAFETY: reads and writes the control register; rounding and traps stay as they are.
        unsafe {
            std::arch::asm!("mrs {}, fpcr", out(reg) mode, options(nomem, nostack, preserves_flags));
            mode = if on { mode | FLUSH } else { mode & !FLUSH };
            std::arch::asm!("msr fpcr, {}", in(reg) mode, options(nostack, preserves_flags));
        }
    }
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    let _ = on;
}

#[cfg(all(test, any(target_arch = "x86_64", target_arch = "aarch64"), not(miri)))]
mod tests {
    use std::hint::black_box;

    #[test]
    fn the_mode_changes_and_changes_back() {
        let product = || black_box(f32::MIN_POSITIVE) * black_box(0.5);
        super::flush_subnormals(true);
        let flushed = product();
        super::flush_subnormals(false);
        assert_eq!(flushed, 0.0);
        assert!(product() > 0.0);
    }
}
