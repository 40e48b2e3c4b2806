//! Guesses at what comes next, from the text so far: prompt lookup (Saxena, "Prompt Lookup Decoding", 2023).
//!
//! Where the last tokens stood in the text before, what followed them then is the guess. Checking some guessed tokens
//! together costs little more than computing one, because the weights are read once, and as the same tokens are
//! chosen in either case, a guess can only save time. It costs time when it is wrong, so that wrong guesses make the next
//! one wait, for longer each time.

use crate::session::MAX_DRAFTS;

/// Tokens that must agree before a guess is made.
const LOOKUP: usize = 3;
/// Tokens of the text that are searched, the last ones first.
const WINDOW: usize = 4096;
/// Drafts of a first guess; each one that was right throughout lets the next be longer.
const FIRST_DRAFTS: usize = 2;
/// Tokens that pass without a guess after a wrong one: at first, and at most.
const FIRST_PAUSE: usize = 4;
const LONGEST_PAUSE: usize = 128;

/// When to guess, and how much.
#[derive(Debug)]
pub(crate) struct Drafter {
    /// Tokens that pass before the next guess.
    pause: usize,
    next_pause: usize,
    n_drafts: usize,
}

impl Default for Drafter {
    fn default() -> Self {
        Drafter { pause: 0, next_pause: FIRST_PAUSE, n_drafts: FIRST_DRAFTS }
    }
}

impl Drafter {
    /// What may follow `last`, which follows `tokens`: at most `most` of them, or nothing.
    pub(crate) fn guess<'t>(&mut self, tokens: &'t [u32], last: u32, most: usize) -> &'t [u32] {
        if self.pause > 0 {
            self.pause -= 1;
            return &[];
        }
        let drafts = lookup(tokens, last);
        &drafts[..drafts.len().min(self.n_drafts).min(most)]
    }

    /// Takes note of how many of the drafts of a guess were right.
    pub(crate) fn learn(&mut self, n_drafts: usize, n_right: usize) {
        if n_right == n_drafts {
            self.n_drafts = MAX_DRAFTS.min(2 * self.n_drafts);
            self.next_pause = FIRST_PAUSE;
        } else if n_right == 0 {
            self.n_drafts = FIRST_DRAFTS;
            self.pause = self.next_pause;
            self.next_pause = LONGEST_PAUSE.min(2 * self.next_pause);
        }
    }
}

/// What followed `last` and the [`LOOKUP`] - 1 tokens before it where they stood before, as late as possible.
fn lookup(tokens: &[u32], last: u32) -> &[u32] {
    let Some(end) = (tokens.len() + 1).checked_sub(LOOKUP) else { return &[] };
    let before = &tokens[end..];
    let start = end.saturating_sub(WINDOW);
    // A match may overlap the last tokens themselves: in a text that repeats one token, the next is guessed, too. Behind
    // the last place of all there is nothing to guess from.
    let mut places = tokens[start..tokens.len().saturating_sub(1).max(start)].windows(LOOKUP);
    let found = places.rposition(|window| window[..LOOKUP - 1] == *before && window[LOOKUP - 1] == last);
    found.map_or(&[], |at| &tokens[start + at + LOOKUP..])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_followed_the_last_time_is_found() {
        assert_eq!(lookup(&[1, 2, 3, 4, 5, 1, 2], 3), [4, 5, 1, 2]);
        assert_eq!(lookup(&[1, 2, 3, 4, 1, 2, 3, 5, 1, 2], 3), [5, 1, 2], "the later of two places");
        assert_eq!(lookup(&[7, 7, 7, 7], 7), [7], "a place that overlaps the end");
        assert_eq!(lookup(&[7, 7, 7], 7), [0; 0], "nothing stands behind it yet");
        assert_eq!(lookup(&[1, 2], 3), [0; 0]);
        assert_eq!(lookup(&[1], 2), [0; 0]);
        assert_eq!(lookup(&[], 1), [0; 0]);
        assert_eq!(lookup(&[1, 2, 4, 1, 2], 3), [0; 0]);
        let far: Vec<u32> = [1, 2, 3].into_iter().chain(4..2 * WINDOW as u32).chain([1, 2]).collect();
        assert_eq!(lookup(&far, 3), [0; 0], "too long ago");
    }

    #[test]
    fn wrong_guesses_pause_and_right_ones_grow() {
        let text = [1, 2, 3, 4, 5, 6, 7, 8, 9, 1, 2];
        let mut drafter = Drafter::default();
        assert_eq!(drafter.guess(&text, 3, 99), [4, 5]);
        drafter.learn(2, 2);
        assert_eq!(drafter.guess(&text, 3, 99), [4, 5, 6, 7]);
        assert_eq!(drafter.guess(&text, 3, 1), [4]);
        drafter.learn(4, 1);
        assert_eq!(drafter.guess(&text, 3, 99).len(), 4, "some were right");
        for pause in [4, 8, 16, 32, 64, 128, 128] {
            drafter.learn(2, 0);
            let waited = (0..).take_while(|_| drafter.guess(&text, 3, 99).is_empty()).count();
            assert_eq!(waited, pause);
        }
        assert_eq!(drafter.guess(&text, 3, 99), [4, 5]);
        drafter.learn(2, 2);
        drafter.learn(4, 0);
        let waited = (0..).take_while(|_| drafter.guess(&text, 3, 99).is_empty()).count();
        assert_eq!(waited, FIRST_PAUSE);
    }
}
