//! Several conversions one after the other, as quantising and widening again is.

use super::ConversionEngine;
use crate::tensor::BitNetTensor;
use crate::{BitNetDType, Result};

/// Steps that tensors take. What is between two steps is given back as soon as the next one is done.
#[derive(Debug, Clone)]
pub struct ConversionPipeline {
    steps: Vec<(ConversionEngine, BitNetDType)>,
}

impl ConversionEngine {
    /// A pipeline whose first step is a conversion by this engine.
    pub fn pipeline(&self, dtype: BitNetDType) -> ConversionPipeline {
        ConversionPipeline { steps: vec![(self.clone(), dtype)] }
    }
}

impl ConversionPipeline {
    /// Adds a conversion by `engine`.
    pub fn then(mut self, engine: &ConversionEngine, dtype: BitNetDType) -> Self {
        self.steps.push((engine.clone(), dtype));
        self
    }

    /// Takes all steps.
    pub fn run(&self, tensor: &BitNetTensor) -> Result<BitNetTensor> {
        let mut at = tensor.clone();
        for (engine, dtype) in &self.steps {
            at = engine.convert(&at, *dtype)?;
        }
        Ok(at)
    }
}
