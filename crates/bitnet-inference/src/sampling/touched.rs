//! The few logits that penalties and biases change.

use super::SamplingOptions;

/// A token id whose logit is not taken as the model gives it.
#[derive(Debug, Clone, Copy)]
struct Entry {
    id: u32,
    /// Whether the repetition penalty applies.
    repeated: bool,
    /// How often it was generated.
    count: u32,
    logit: f32,
}

/// The ids that options change at one place in a text, in ascending order, and their logits.
#[derive(Debug, Default)]
pub(crate) struct Touched {
    entries: Vec<Entry>,
}

impl Touched {
    /// Finds the ids below `vocab_size`; `tokens` are those so far, from `generated_from` on generated ones.
    pub(crate) fn find(
        &mut self,
        o: &SamplingOptions,
        tokens: &[u32],
        generated_from: usize,
        vocab_size: usize,
    ) {
        let entry = |id: u32, repeated, count| Entry { id, repeated, count, logit: 0.0 };
        self.entries.clear();
        if o.repetition_penalty != 1.0 {
            self.entries.extend(tokens.iter().map(|id| entry(*id, true, 0)));
        }
        if o.presence_penalty != 0.0 || o.frequency_penalty != 0.0 {
            let generated = &tokens[generated_from.min(tokens.len())..];
            self.entries.extend(generated.iter().map(|id| entry(*id, false, 1)));
        }
        self.entries.extend(o.logit_bias.iter().map(|(id, _)| entry(*id, false, 0)));
        // Models may have rows that no token of the tokenizer has.
        self.entries.retain(|e| (e.id as usize) < vocab_size);
        self.entries.sort_unstable_by_key(|e| e.id);
        self.entries.dedup_by(|next, kept| {
            let same = next.id == kept.id;
            if same {
                kept.repeated |= next.repeated;
                kept.count += next.count;
            }
            same
        });
    }

    pub(crate) fn len(&self) -> usize {
        self.entries.len()
    }

    pub(crate) fn ids(&self) -> impl Iterator<Item = u32> {
        self.entries.iter().map(|e| e.id)
    }

    /// The ids with what [`adjust`](Self::adjust) made of their logits.
    pub(crate) fn logits(&self) -> impl Iterator<Item = (u32, f32)> {
        self.entries.iter().map(|e| (e.id, e.logit))
    }

    /// Applies penalties and biases to what the model gives each id; the ids are asked for in their order.
    pub(crate) fn adjust(&mut self, o: &SamplingOptions, mut given: impl FnMut(u32) -> f32) {
        for e in &mut self.entries {
            let logit = given(e.id);
            e.logit = logit;
            if e.repeated {
                e.logit =
                    if logit > 0.0 { logit / o.repetition_penalty } else { logit * o.repetition_penalty };
            }
            if e.count > 0 {
                e.logit -= o.presence_penalty;
                for _ in 0..e.count {
                    e.logit -= o.frequency_penalty;
                }
            }
        }
        for (id, bias) in &o.logit_bias {
            if let Ok(i) = self.entries.binary_search_by_key(id, |e| e.id) {
                self.entries[i].logit += bias;
            }
        }
    }
}
