//! Trains the small model's tokenizer: byte-level BPE in the file format of Qwen's.

use tokenizers::{
    AddedToken, DecoderWrapper, NormalizerWrapper, PostProcessorWrapper, PreTokenizerWrapper,
    SplitDelimiterBehavior, TokenizerBuilder,
    models::bpe::{BPE, BpeTrainer},
    pre_tokenizers::{
        byte_level::ByteLevel,
        sequence::Sequence,
        split::{Split, SplitPattern},
    },
};

use crate::{
    control::ControlTokens,
    tokenizer::{Tokenizer, TokenizerError},
};

/// How text is cut into words before BPE: a newline, a digit, a run of letters, a run of anything
/// else. Digits stand alone, so a number is copied and computed digit by digit. A name is the same
/// token in a sentence and in JSON, so copying it is one step. JSON's punctuation between two words
/// is one token, which keeps trajectories short; after a newline `{"` is a word of its own.
const WORDS: &str = r"\n|\p{N}|\p{L}+|[^\p{L}\p{N}\n]+";

/// A pair of pieces seen once is chance, not a word.
const MERGE_COUNT_MIN: u64 = 2;

/// The tags in the order of their ids, which is Qwen's, and whether `skip_special_tokens` of
/// `transformers` drops them: like Qwen's, the tags of calls and results stay readable.
const ADDED_TOKENS: [(&str, bool); ControlTokens::TAGS] = [
    ("<|endoftext|>", true),
    ("<|im_start|>", true),
    ("<|im_end|>", true),
    ("<tool_call>", false),
    ("</tool_call>", false),
    ("<tool_response>", false),
    ("</tool_response>", false),
];

/// Trains a tokenizer with at most `vocab_size` tokens, the 256 bytes and the seven tags included;
/// fewer when the corpus offers no more merges. The tags have the last ids. The same corpus gives
/// the same bytes. Tags spelled in the corpus separate texts and are not learned from.
///
/// # Errors
/// When the corpus does not make `{"` a token, or training fails.
pub fn train_tokenizer(
    corpus: impl Iterator<Item = String>,
    vocab_size: usize,
) -> Result<Tokenizer, TokenizerError> {
    let texts: Vec<String> = corpus.flat_map(|text| without_tags(&text)).collect();
    let mut trainer = BpeTrainer::builder()
        .vocab_size(vocab_size.saturating_sub(ADDED_TOKENS.len()))
        .min_frequency(MERGE_COUNT_MIN)
        .initial_alphabet(ByteLevel::alphabet().into_iter().collect())
        .show_progress(false)
        .build();
    let json = untrained()
        .and_then(|mut tokenizer| {
            tokenizer.train(&mut trainer, texts.into_iter())?;
            for (content, special) in ADDED_TOKENS {
                tokenizer.add_tokens(&[AddedToken::from(content, special).normalized(false)]);
            }
            tokenizer.to_string(true)
        })
        .map_err(|e| TokenizerError::Train(e.to_string()))?;
    Tokenizer::from_bytes(json.as_bytes())
}

type ByteLevelBpe = tokenizers::TokenizerImpl<
    BPE,
    NormalizerWrapper,
    PreTokenizerWrapper,
    PostProcessorWrapper,
    DecoderWrapper,
>;

/// Without a normaliser, unlike Qwen's: every text comes back exactly.
fn untrained() -> tokenizers::Result<ByteLevelBpe> {
    let words =
        Split::new(SplitPattern::Regex(WORDS.to_owned()), SplitDelimiterBehavior::Isolated, false)?;
    let bytes = ByteLevel::new(false, false, false);
    TokenizerBuilder::new()
        .with_model(BPE::default())
        .with_normalizer(None)
        .with_pre_tokenizer(Some(Sequence::new(vec![words.into(), bytes.into()]).into()))
        .with_post_processor(None)
        .with_decoder(Some(bytes.into()))
        .build()
}

/// The pieces of `text` between control tags.
fn without_tags(text: &str) -> Vec<String> {
    ADDED_TOKENS.iter().fold(vec![text.to_owned()], |pieces, (tag, _)| {
        pieces.iter().flat_map(|piece| piece.split(tag)).map(str::to_owned).collect()
    })
}

#[cfg(test)]
mod tests {
    use super::{ADDED_TOKENS, train_tokenizer};
    use crate::{
        TokenizerError,
        testing::{corpus, tokenizer},
    };

    #[test]
    fn the_same_corpus_gives_the_same_bytes() {
        let again = train_tokenizer(corpus(), 400).unwrap();
        let reversed: Vec<_> = corpus().collect();
        let reversed = train_tokenizer(reversed.into_iter().rev(), 400).unwrap();
        assert_eq!(again.json(), train_tokenizer(corpus(), 400).unwrap().json());
        assert_eq!(again.json(), reversed.json(), "only counts matter, not the order");
    }

    #[test]
    fn tags_in_the_corpus_are_not_learned_from() {
        let tagged =
            ["<tool_call>{\"a<|im_end|>b<|im_end|>", "{\"a</tool_call>"].map(str::to_owned);
        let plain = ["{\"a", "b", "{\"a"].map(str::to_owned);
        assert_eq!(
            train_tokenizer(tagged.into_iter(), 400).unwrap().json(),
            train_tokenizer(plain.into_iter(), 400).unwrap().json()
        );
    }

    #[test]
    fn the_tags_have_the_last_ids() {
        let tokenizer = tokenizer();
        let first = tokenizer.vocab_size() - ADDED_TOKENS.len();
        for (index, (name, _)) in ADDED_TOKENS.into_iter().enumerate() {
            assert_eq!(tokenizer.encode(name).unwrap(), [u32::try_from(first + index).unwrap()]);
        }
    }

    #[test]
    fn the_vocabulary_is_no_larger_than_asked_and_may_be_smaller() {
        let exact = train_tokenizer(corpus(), 290).unwrap();
        assert_eq!(exact.vocab_size(), 290);
        let roomy = train_tokenizer(corpus(), 100_000).unwrap();
        assert!(roomy.vocab_size() < 1000, "{}", roomy.vocab_size());
    }

    #[test]
    fn digits_stand_alone() {
        assert_eq!(tokenizer().encode("2026").unwrap().len(), 4);
    }

    #[test]
    fn a_corpus_without_json_is_refused() {
        let prose = ["the price of a lamp ", "the price of a chair "].map(str::to_owned);
        let error = train_tokenizer(prose.into_iter(), 400).unwrap_err();
        assert!(
            matches!(error, TokenizerError::MissingControlTokens { missing, .. } if missing == ["{\""])
        );
    }
}
