//! Activation functions, softmax, and their derivatives.

use bitnet_quant::float::{erf64, exp, exp64, tanh64};
use bitnet_quant::fpenv::DefaultFloatEnv;
use bitnet_quant::kernels::Arithmetic;

use crate::Result;
use crate::memory::HybridMemoryPool;
use crate::shape::axis_of;

use super::BitNetTensor;
use super::reductions::{dot, extreme, sum};

/// A function of each element. Those in `f64` inside are rounded once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ActivationFunction {
    /// max(x, 0).
    Relu,
    /// max(x, 0)², the gate of BitNet's feed-forward network.
    Relu2,
    /// x·Φ(x) with the distribution function of the normal distribution: PyTorch's `gelu`.
    Gelu,
    /// Its approximation x/2·(1 + tanh(√(2/π)·(x + 0.044715·x³))): PyTorch's `gelu` with `approximate='tanh'`.
    GeluTanh,
    /// 1 / (1 + e^-x).
    Sigmoid,
    /// (e^x - e^-x) / (e^x + e^-x).
    Tanh,
    /// x / (1 + e^-x), also called Swish.
    Silu,
}

/// √(2/π).
const GELU_SCALE: f64 = 0.797_884_560_802_865_4;
const GELU_CUBE: f64 = 0.044_715;

impl ActivationFunction {
    /// Every function.
    pub const ALL: [ActivationFunction; 7] = [
        ActivationFunction::Relu,
        ActivationFunction::Relu2,
        ActivationFunction::Gelu,
        ActivationFunction::GeluTanh,
        ActivationFunction::Sigmoid,
        ActivationFunction::Tanh,
        ActivationFunction::Silu,
    ];

    /// f(x).
    pub fn value(self, x: f32) -> f32 {
        let x64 = f64::from(x);
        match self {
            // NaN comes through.
            ActivationFunction::Relu => {
                if x < 0.0 {
                    0.0
                } else {
                    x
                }
            }
            ActivationFunction::Relu2 => {
                if x < 0.0 {
                    0.0
                } else {
                    x * x
                }
            }
            ActivationFunction::Gelu => zero_at_minus_infinity(x64, normal(x64)),
            ActivationFunction::GeluTanh => {
                zero_at_minus_infinity(x64, 0.5 * (1.0 + tanh64(gelu_argument(x64))))
            }
            ActivationFunction::Sigmoid => sigmoid(x64) as f32,
            ActivationFunction::Tanh => tanh64(x64) as f32,
            ActivationFunction::Silu => zero_at_minus_infinity(x64, sigmoid(x64)),
        }
    }

    /// f'(x); at the corner of a rectifier that of the left side, 0.
    pub fn derivative(self, x: f32) -> f32 {
        let x64 = f64::from(x);
        match self {
            ActivationFunction::Relu => {
                if x <= 0.0 {
                    0.0
                } else {
                    x.signum()
                }
            }
            ActivationFunction::Relu2 => {
                if x < 0.0 {
                    0.0
                } else {
                    2.0 * x
                }
            }
            ActivationFunction::Gelu => {
                let density = GELU_SCALE * 0.5 * exp64(-0.5 * x64 * x64);
                (normal(x64) + slope(x64, density)) as f32
            }
            ActivationFunction::GeluTanh => {
                let t = tanh64(gelu_argument(x64));
                let inner = (1.0 - t * t) * GELU_SCALE * (1.0 + 3.0 * GELU_CUBE * x64 * x64);
                (0.5 * (1.0 + t) + 0.5 * slope(x64, inner)) as f32
            }
            ActivationFunction::Sigmoid => {
                let s = sigmoid(x64);
                (s * (1.0 - s)) as f32
            }
            ActivationFunction::Tanh => {
                let t = tanh64(x64);
                (1.0 - t * t) as f32
            }
            ActivationFunction::Silu => {
                let s = sigmoid(x64);
                (s + slope(x64, s * (1.0 - s))) as f32
            }
        }
    }
}

fn sigmoid(x: f64) -> f64 {
    1.0 / (1.0 + exp64(-x))
}

/// Φ(x) = (1 + erf(x / √2)) / 2.
fn normal(x: f64) -> f64 {
    0.5 * (1.0 + erf64(x * std::f64::consts::FRAC_1_SQRT_2))
}

fn gelu_argument(x: f64) -> f64 {
    GELU_SCALE * (x + GELU_CUBE * x * x * x)
}

/// `x · share`, where a share of nothing is nothing even of infinity.
fn zero_at_minus_infinity(x: f64, share: f64) -> f32 {
    if share == 0.0 { 0.0 } else { (x * share) as f32 }
}

/// `x · slope`, where a slope that has vanished is stronger than infinity.
fn slope(x: f64, slope: f64) -> f64 {
    if x.is_infinite() { 0.0 } else { x * slope }
}

impl BitNetTensor {
    /// `f` of each element.
    pub fn activate(&self, f: ActivationFunction, pool: &HybridMemoryPool) -> Result<Self> {
        self.map(|x| f.value(x), pool)
    }

    /// The derivative of `f` at each element.
    pub fn activation_derivative(&self, f: ActivationFunction, pool: &HybridMemoryPool) -> Result<Self> {
        self.map(|x| f.derivative(x), pool)
    }

    /// e^(x - max) / Σ e^(x - max) along `axis`, in f32.
    pub fn softmax(&self, axis: isize, pool: &HybridMemoryPool) -> Result<Self> {
        let rows = self.with_axis_last(axis)?.values(pool)?;
        Self::rowwise(&rows, &rows, pool, |x, _, out| {
            let max = extreme(Arithmetic::Max, f32::NEG_INFINITY, x);
            for (out, x) in out.iter_mut().zip(x) {
                *out = exp(x - max);
            }
            let total = sum(out);
            out.iter_mut().for_each(|out| *out /= total);
        })?
        .with_axis_last(axis)
    }

    /// The derivative of a loss by the input of a softmax: `y · (g - Σ g·y)` along `axis`, where this tensor is `y`, what
    /// the softmax gave, and `gradient` is the derivative `g` by it.
    pub fn softmax_backward(&self, gradient: &Self, axis: isize, pool: &HybridMemoryPool) -> Result<Self> {
        let y = self.with_axis_last(axis)?.values(pool)?;
        let g = gradient.broadcast_to(self.shape())?.with_axis_last(axis)?.values(pool)?;
        Self::rowwise(&y, &g, pool, |y, g, out| {
            let mean = dot(g, y);
            for (out, (y, g)) in out.iter_mut().zip(y.iter().zip(g)) {
                *out = y * (g - mean);
            }
        })?
        .with_axis_last(axis)
    }

    /// The axis exchanged with the last one, which undoes itself. A tensor without axes is a row of one.
    fn with_axis_last(&self, axis: isize) -> Result<Self> {
        let n_dims = self.shape().len();
        if n_dims == 0 && matches!(axis, 0 | -1) {
            return Ok(self.clone());
        }
        let axis = axis_of(axis, n_dims)?;
        let mut axes: Vec<usize> = (0..n_dims).collect();
        axes.swap(axis, n_dims - 1);
        if axis + 1 == n_dims { Ok(self.clone()) } else { self.permute(&axes) }
    }

    /// `f` on each row of two tensors of one shape.
    fn rowwise(
        a: &Self,
        b: &Self,
        pool: &HybridMemoryPool,
        f: impl Fn(&[f32], &[f32], &mut [f32]),
    ) -> Result<Self> {
        let _env = DefaultFloatEnv::enter();
        let len = a.shape().last().copied().unwrap_or(1).max(1);
        Self::filled(a.shape(), a.device(), pool, |out| {
            let rows = a.as_slice::<f32>().chunks(len).zip(b.as_slice::<f32>().chunks(len));
            for ((a, b), out) in rows.zip(out.chunks_mut(len)) {
                f(a, b, out);
            }
        })
    }
}
