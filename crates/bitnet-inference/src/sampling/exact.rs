//! Numbers in JSON as texts with the fewest digits that mean them: JSON's own readers may be off by the last bit, and it has
//! no infinity, which biases may be.

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serializer};

pub(super) fn serialize<S: Serializer>(x: &f32, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(x)
}

pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<f32, D::Error> {
    String::deserialize(deserializer)?.parse().map_err(D::Error::custom)
}

/// The same for numbers that belong to token ids.
pub(super) mod pairs {
    use super::*;

    pub(in crate::sampling) fn serialize<S: Serializer>(
        pairs: &[(u32, f32)],
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(pairs.iter().map(|(id, x)| (id, x.to_string())))
    }

    pub(in crate::sampling) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Vec<(u32, f32)>, D::Error> {
        let pairs: Vec<(u32, String)> = Vec::deserialize(deserializer)?;
        let parse = |(id, x): (u32, String)| Ok((id, x.parse().map_err(D::Error::custom)?));
        pairs.into_iter().map(parse).collect()
    }
}
