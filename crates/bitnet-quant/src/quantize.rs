//! Quantisers: from values to few bits and back, and what is lost on the way.
//!
//! Ternary weights are the engine's own ([`absmean`]); integers of eight and four bits ([`integer`]) and half precision are
//! what a ternary model is measured against. Ranges come from the values themselves, which is called dynamic, or from
//! values seen before ([`calibration`]), which is called static. [`metrics`] say what was lost, [`sparsity`] makes zeros.
//!
//! ```
//! use bitnet_quant::quantize::{Granularity, Scheme, integer::IntegerFormat, metrics::ErrorMetrics};
//!
//! let weights = [0.5, -0.25, 0.125, 1.0];
//! let mut restored = [0.0; 4];
//! Scheme::Integer(IntegerFormat::INT8).restore(Granularity::Tensor, &weights, 4, &mut restored)?;
//! let mut error = ErrorMetrics::default();
//! error.push(&weights, &restored);
//! assert!(error.sqnr_db() > 40.0);
//! # Ok::<(), bitnet_quant::quantize::QuantizeError>(())
//! ```

pub mod absmean;
pub mod calibration;
pub mod integer;
pub mod metrics;
pub mod sparsity;

use half::f16;

use integer::{IntegerFormat, ValueRange};

/// Which values share a scale. Matrices are row-major, and a row is an output channel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Granularity {
    /// All of them.
    Tensor,
    /// Those of a row.
    Channel,
    /// So many that follow each other in a row.
    Group(usize),
}

impl Granularity {
    /// Values that share a scale, in a matrix of `n` values with rows of `cols`.
    pub fn segment(self, n: usize, cols: usize) -> Result<usize, QuantizeError> {
        let segment = match self {
            Granularity::Tensor => n,
            Granularity::Channel => cols,
            Granularity::Group(size) => size,
        };
        let fits = match self {
            Granularity::Tensor => true,
            Granularity::Channel => cols > 0 && n.is_multiple_of(cols),
            Granularity::Group(size) => {
                size > 0 && cols > 0 && cols.is_multiple_of(size) && n.is_multiple_of(cols)
            }
        };
        if fits { Ok(segment.max(1)) } else { Err(QuantizeError::Segments { n, cols, segment }) }
    }
}

/// Why values cannot be quantised.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum QuantizeError {
    /// An infinity or NaN has no code, and neither has a range that is wider than single precision.
    #[error("the values, or the width of their range, are not finite; give finite values")]
    NotFinite,
    /// The values do not fall into whole rows and groups.
    #[error(
        "{n} values in rows of {cols} do not fall into groups of {segment}; give a group that divides the rows"
    )]
    Segments {
        /// Values.
        n: usize,
        /// Values of a row.
        cols: usize,
        /// Values that are to share a scale.
        segment: usize,
    },
    /// There are not as many parameters, codes or places for values as there have to be.
    #[error("{what} has {got} entries where {want} are needed; give as many")]
    Count {
        /// Which list.
        what: &'static str,
        /// The length that is needed.
        want: usize,
        /// The length at hand.
        got: usize,
    },
    /// A range was asked for before any value was seen.
    #[error("no value was observed; give the calibration some")]
    NothingObserved,
    /// A number is outside of what it can be.
    #[error("{what} must be {must}")]
    BadValue {
        /// The number.
        what: &'static str,
        /// The values that make sense.
        must: &'static str,
    },
}

/// What values are quantised to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scheme {
    /// -1, 0, +1 and a scale, by absmean.
    Ternary,
    /// Integers and a scale, with or without a zero point.
    Integer(IntegerFormat),
    /// Half precision, which needs no scale; values beyond its range become infinite.
    Fp16,
}

impl Scheme {
    /// Quantises `values`, in rows of `cols`, and writes what the codes stand for to `restored`. The ranges are those of the
    /// values themselves.
    pub fn restore(
        self,
        granularity: Granularity,
        values: &[f32],
        cols: usize,
        restored: &mut [f32],
    ) -> Result<(), QuantizeError> {
        check_count("the place for restored values", values.len(), restored.len())?;
        let segment = granularity.segment(values.len(), cols)?;
        for (values, restored) in values.chunks(segment).zip(restored.chunks_mut(segment)) {
            match self {
                Scheme::Ternary => {
                    let rule = absmean::TernaryRule::of(values).ok_or(QuantizeError::NotFinite)?;
                    let mut codes = vec![0; values.len()];
                    rule.codes(0, values, &mut codes);
                    for (code, restored) in codes.iter().zip(restored) {
                        *restored = (f32::from(*code) - 1.0) * rule.scale();
                    }
                }
                Scheme::Integer(format) => {
                    let params = format.params(ValueRange::of(values)?)?;
                    for (x, restored) in values.iter().zip(restored) {
                        *restored = params.value(format.code(params, *x));
                    }
                }
                Scheme::Fp16 => {
                    for (x, restored) in values.iter().zip(restored) {
                        *restored = f16::from_f32(*x).to_f32();
                    }
                }
            }
        }
        Ok(())
    }
}

fn check_count(what: &'static str, want: usize, got: usize) -> Result<(), QuantizeError> {
    if want == got { Ok(()) } else { Err(QuantizeError::Count { what, want, got }) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_divide_rows() {
        assert_eq!(Granularity::Group(4).segment(24, 12), Ok(4));
        assert_eq!(Granularity::Channel.segment(24, 12), Ok(12));
        assert_eq!(Granularity::Tensor.segment(24, 12), Ok(24));
        let refused = QuantizeError::Segments { n: 24, cols: 12, segment: 5 };
        assert_eq!(Granularity::Group(5).segment(24, 12), Err(refused));
        assert!(Granularity::Group(0).segment(24, 12).is_err());
        assert!(Granularity::Channel.segment(24, 0).is_err());
        assert!(Granularity::Channel.segment(25, 12).is_err());
    }

    #[test]
    fn smaller_groups_lose_less() {
        let values: Vec<f32> = (0..64).map(|i| (i as f32 - 30.0) * if i < 32 { 0.01 } else { 1.0 }).collect();
        let noise = |granularity| {
            let mut restored = vec![0.0; 64];
            Scheme::Integer(IntegerFormat::INT4).restore(granularity, &values, 32, &mut restored).unwrap();
            let mut error = metrics::ErrorMetrics::default();
            error.push(&values, &restored);
            error.mse()
        };
        assert!(noise(Granularity::Group(8)) < noise(Granularity::Channel));
        assert!(noise(Granularity::Channel) < noise(Granularity::Tensor));
    }
}
