//! Which logits a choice depends on.

use super::noise::Noise;
use super::{SamplingOptions, min_p_margin};

/// A choice depends on the tokens whose score is at least the k-th highest, less a margin. A score is the logit, or where
/// all tokens are drawn from, the logit over the temperature with its noise.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Need {
    pub(crate) k: usize,
    pub(crate) margin: f64,
    draw: Option<(f64, Noise)>,
}

/// Of a score's parts: room for the roundings of its bounds, to `f32` among others.
const SLACK: f64 = 1.0 / (1u64 << 22) as f64;

impl Need {
    /// `None` where every logit counts: for a nucleus, the sum of all is needed.
    pub(crate) fn of(o: &SamplingOptions, position: usize) -> Option<Self> {
        let logits = |k, margin| Some(Need { k, margin, draw: None });
        if o.temperature == 0.0 {
            return logits(1, 0.0);
        }
        if o.top_k > 0 {
            return logits(o.top_k, 0.0);
        }
        if o.top_p < 1.0 {
            return None;
        }
        if o.min_p > 0.0 {
            return logits(1, min_p_margin(o));
        }
        let draw = (f64::from(o.temperature), Noise::new(o.seed, position as u64));
        Some(Need { k: 1, margin: 0.0, draw: Some(draw) })
    }

    /// The score of a token.
    pub(crate) fn score(&self, id: u32, logit: f32) -> f64 {
        match self.draw {
            None => f64::from(logit),
            Some((temperature, noise)) => f64::from(logit) / temperature + noise.of(id),
        }
    }

    /// Whether [`bounds`](Self::bounds) does anything.
    pub(crate) fn is_noisy(&self) -> bool {
        self.draw.is_some()
    }

    /// Turns bounds of the logits of tokens from `first` on into bounds of their scores.
    pub(crate) fn bounds(&self, first: usize, lower: &mut [f32], upper: &mut [f32]) {
        let Some((temperature, noise)) = self.draw else { return };
        let factor = 1.0 / temperature;
        for (i, (lower, upper)) in lower.iter_mut().zip(upper).enumerate() {
            let (least, most) = noise.bounds((first + i) as u32);
            let (low, high) = (f64::from(*lower) * factor, f64::from(*upper) * factor);
            *lower = (low + least - (low.abs() + least.abs()) * SLACK) as f32;
            *upper = (high + most + (high.abs() + most.abs()) * SLACK) as f32;
        }
    }
}
