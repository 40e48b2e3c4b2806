//! What conversions have cost.

use std::time::Duration;

/// Counts and times of an engine's conversions.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ConversionStats {
    /// Conversions asked for; each tensor of a batch is one.
    pub total_conversions: u64,
    /// Those that were refused.
    pub failed_conversions: u64,
    /// Those that shared the bytes at hand.
    pub zero_copy_conversions: u64,
    /// Bytes that were read to be converted.
    pub bytes_read: u64,
    /// Time of all of them.
    pub total_time: Duration,
}

impl ConversionStats {
    /// Conversions that were not refused, in percent; 100 where none was asked for.
    pub fn success_rate(&self) -> f64 {
        if self.total_conversions == 0 {
            return 100.0;
        }
        100.0 * (self.total_conversions - self.failed_conversions) as f64 / self.total_conversions as f64
    }

    /// Time of a conversion in milliseconds, on average.
    pub fn average_time_ms(&self) -> f64 {
        1e3 * self.total_time.as_secs_f64() / self.total_conversions.max(1) as f64
    }

    pub(super) fn count(&mut self, succeeded: bool, bytes: usize, time: Duration) {
        self.total_conversions += 1;
        self.failed_conversions += u64::from(!succeeded);
        self.zero_copy_conversions += u64::from(succeeded && bytes == 0);
        self.bytes_read += bytes as u64;
        self.total_time += time;
    }
}
