//! Stop strings in a text that arrives in pieces.
//!
//! Invariant: nothing that is released has to be taken back. Text that may be the beginning of a
//! stop string is held until the next piece decides it.

/// Looks for the first of some strings in growing text.
#[derive(Clone, Debug, Default)]
pub struct StopStrings {
    /// None is empty.
    strings: Vec<String>,
    held: String,
}

/// What a piece of text led to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Released {
    /// Text that is certain to stand before any stop string.
    pub text: String,
    /// The stop string that was found; the text ended right before it.
    pub stopped_by: Option<String>,
}

impl StopStrings {
    /// Stops at the first occurrence of any of `strings`; empty ones are left out.
    #[must_use]
    pub fn new(strings: Vec<String>) -> Self {
        let strings = strings.into_iter().filter(|string| !string.is_empty()).collect();
        Self { strings, held: String::new() }
    }

    /// Takes the next piece.
    pub fn push(&mut self, piece: &str) -> Released {
        self.held.push_str(piece);
        let found =
            self.strings.iter().filter_map(|string| Some((self.held.find(string)?, string)));
        if let Some((at, string)) = found.min_by_key(|(at, string)| (*at, string.len())) {
            let stopped_by = Some(string.clone());
            self.held.truncate(at);
            return Released { text: std::mem::take(&mut self.held), stopped_by };
        }
        let held = self.held.split_off(self.held.len() - self.undecided());
        Released { text: std::mem::replace(&mut self.held, held), stopped_by: None }
    }

    /// The text that was held, when no further piece comes.
    pub fn finish(&mut self) -> String {
        std::mem::take(&mut self.held)
    }

    /// Bytes at the end that begin a stop string.
    fn undecided(&self) -> usize {
        let begins = |string: &String| {
            let longest = self.held.len().min(string.len() - 1);
            let is_begun = |length: &usize| {
                self.held.as_bytes()[self.held.len() - length..] == string.as_bytes()[..*length]
            };
            (1..=longest).rev().find(is_begun).unwrap_or(0)
        };
        self.strings.iter().map(begins).max().unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn run(strings: &[&str], pieces: &[&str]) -> (Vec<String>, Option<String>) {
        let mut stops = StopStrings::new(strings.iter().map(|s| (*s).to_owned()).collect());
        let mut texts = Vec::new();
        for piece in pieces {
            let released = stops.push(piece);
            texts.push(released.text);
            if released.stopped_by.is_some() {
                return (texts, released.stopped_by);
            }
        }
        texts.push(stops.finish());
        (texts, None)
    }

    #[test]
    fn a_stop_string_over_several_pieces_is_found_and_left_out() {
        let (texts, stopped_by) = run(&["END", "never"], &["one E", "N", "D two"]);
        assert_eq!(texts, ["one ", "", ""]);
        assert_eq!(stopped_by.as_deref(), Some("END"));
    }

    #[test]
    fn a_beginning_that_comes_to_nothing_is_released() {
        let (texts, stopped_by) = run(&["END"], &["E", "EN", "x E"]);
        assert_eq!(texts, ["", "E", "ENx ", "E"]);
        assert_eq!(stopped_by, None);
    }

    #[test]
    fn the_first_occurrence_wins() {
        let (texts, stopped_by) = run(&["b", "ab"], &["xab"]);
        assert_eq!((texts.concat().as_str(), stopped_by.as_deref()), ("x", Some("ab")));
    }

    #[test]
    fn an_empty_stop_string_stops_nothing() {
        assert_eq!(run(&[""], &["text"]), (vec!["text".to_owned(), String::new()], None));
    }

    proptest! {
        #[test]
        fn pieces_change_nothing(
            text in "[abe\u{e9}]{0,24}", stop in "[abe\u{e9}]{1,4}", cuts in prop::collection::vec(0usize..24, 0..6)
        ) {
            let mut stops = StopStrings::new(vec![stop.clone()]);
            let chars: Vec<char> = text.chars().collect();
            let mut bounds: Vec<usize> = cuts.into_iter().map(|cut| cut.min(chars.len())).collect();
            bounds.extend([0, chars.len()]);
            bounds.sort_unstable();
            let (mut seen, mut stopped) = (String::new(), false);
            for bound in bounds.windows(2) {
                let piece: String = chars[bound[0]..bound[1]].iter().collect();
                let released = stops.push(&piece);
                seen.push_str(&released.text);
                stopped = released.stopped_by.is_some();
                if stopped { break; }
            }
            if !stopped { seen.push_str(&stops.finish()); }
            prop_assert_eq!(seen, text.split(&stop).next().unwrap());
            prop_assert_eq!(stopped, text.contains(&stop));
        }
    }
}
