//! How a byte-pair vocabulary's text is cut before pieces are merged, by the name the file gives it (`tokenizer.ggml.pre`).
//! The expressions are those that llama.cpp's ids follow, which are not always those of the model's own tokenizer.json:
//! where it has no upper and lower case beyond ASCII, neither do these. Names that are not here are refused elsewhere.

/// What a name stands for.
#[derive(Debug, Clone, Copy)]
pub(super) struct Rules {
    /// Applied one after the other; what one leaves over is a piece of its own, and the next one's text.
    pub(super) splits: &'static [&'static str],
    /// A piece that is a token as it stands is not merged.
    pub(super) whole_pieces: bool,
    /// A text begins with the token for it, unless the file says otherwise.
    pub(super) begins: bool,
}

macro_rules! contraction {
    () => {
        r"'(?:[sStTmMdD]|[rR][eE]|[vV][eE]|[lL][lL])"
    };
}

macro_rules! spaces {
    () => {
        r"\s*[\r\n]+|\s+(?!\S)|\s+"
    };
}

/// Words in which a capital begins a new one, as GPT-4o cuts them; `$end` may follow.
macro_rules! cased_words {
    ($end:expr) => {
        concat!(
            r"[^\r\n\p{L}\p{N}]?[\p{L}&&[^a-z]]*[\p{L}&&[^A-Z]]+",
            $end,
            r"|[^\r\n\p{L}\p{N}]?[\p{L}&&[^a-z]]+[\p{L}&&[^A-Z]]*",
            $end
        )
    };
}

const GPT2: &str = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";
const LLAMA3: &str =
    concat!(contraction!(), r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|", spaces!());
const QWEN2: &str = concat!(contraction!(), r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|", spaces!());
const QWEN35: &str =
    concat!(contraction!(), r"|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|", spaces!());
const NUMBERS: &str = r"\p{N}+";
const DIGIT: &str = r"\p{N}";
const THREE_ASCII_DIGITS: &str = "[0-9][0-9][0-9]";
const UP_TO_THREE_DIGITS: &str = r"\p{N}{1,3}";
const NEW_LINE: &str = r"[\r\n]";
const LINES: &str = r"[^\n]+|\n+";
const EAST_ASIAN: &str = r"[\x{4E00}-\x{9FA5}\x{3040}-\x{30FF}]+";
/// The ranges of the tokenizer's own file, which hold white space, too; that is not meant.
const EAST_ASIAN_OF_DEEPSEEK: &str = r"[[\x{0800}-\x{9FA5}\x{AC00}-\x{D7FF}]&&\S]+";
const DEEPSEEK3: &str = concat!(
    r##"[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|"##,
    spaces!()
);
const GPT4O: &str =
    concat!(cased_words!(concat!("(?:", contraction!(), ")?")), r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|", spaces!());
const TEKKEN: &str = concat!(cased_words!(""), r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|", spaces!());
const NO_PUNCTUATION: &str = r" ?[^(\s|.,!?\x{2026}\x{3002}\x{FF0C}\x{3001}\x{0964}\x{06D4}\x{060C})]+";
const LETTERS_OF_DEEPSEEK: &str = concat!(
    r"\s?[A-Za-z",
    r"\x{00B5}\x{00C0}-\x{00D6}\x{00D8}-\x{00F6}\x{00F8}-\x{01BA}\x{01BC}-\x{01BF}\x{01C4}-\x{0293}",
    r"\x{0295}-\x{02AF}\x{0370}-\x{0373}\x{0376}\x{0377}\x{037B}-\x{037D}\x{037F}\x{0386}\x{0388}-\x{038A}\x{038C}",
    r"\x{038E}-\x{03A1}\x{03A3}-\x{03F5}\x{03F7}-\x{0481}\x{048A}-\x{052F}\x{0531}-\x{0556}\x{10A0}-\x{10C5}",
    r"\x{13A0}-\x{13F5}\x{13F8}-\x{13FD}\x{1C90}-\x{1CBA}\x{1CBD}-\x{1CBF}\x{1D00}-\x{1D2B}\x{1D6B}-\x{1D77}",
    r"\x{1D79}-\x{1D9A}\x{1E00}-\x{1F15}\x{1F18}-\x{1F1D}\x{1F20}-\x{1F45}\x{1F48}-\x{1F4D}\x{1F50}-\x{1F57}",
    r"\x{1F59}\x{1F5B}\x{1F5D}\x{1F5F}-\x{1F7D}\x{1F80}-\x{1FB4}\x{1FB6}-\x{1FBC}\x{1FBE}\x{1FC2}-\x{1FC4}",
    r"\x{1FC6}-\x{1FCC}\x{1FD0}-\x{1FD3}\x{1FD6}-\x{1FDB}\x{1FE0}-\x{1FEC}\x{1FF2}-\x{1FF4}\x{1FF6}-\x{1FFC}",
    r"\x{2102}\x{2107}\x{210A}-\x{2113}\x{2115}\x{2119}-\x{211D}\x{2124}\x{2126}\x{2128}\x{212A}-\x{212D}",
    r"\x{212F}-\x{2134}\x{2139}\x{213C}-\x{213F}\x{2145}-\x{2149}\x{214E}\x{2183}\x{2184}\x{2C00}-\x{2C7B}",
    r"\x{2C7E}-\x{2CE4}\x{2CEB}-\x{2CEE}\x{2CF2}\x{2CF3}\x{A640}-\x{A66D}\x{A680}-\x{A69B}\x{A722}-\x{A76F}",
    r"\x{A771}-\x{A787}\x{A78B}-\x{A78E}\x{AB70}-\x{ABBF}\x{FB00}-\x{FB06}\x{FB13}-\x{FB17}\x{FF21}-\x{FF3A}",
    r"\x{FF41}-\x{FF5A}\x{10400}-\x{1044F}\x{104B0}-\x{104D3}\x{104D8}-\x{104FB}\x{10C80}-\x{10CB2}",
    r"\x{10CC0}-\x{10CF2}\x{118A0}-\x{118DF}\x{1E900}-\x{1E943}",
    r"]+"
);

/// The rules of a name, if it is known.
pub(super) fn rules(name: &str) -> Option<Rules> {
    let splits: &[&str] = match name {
        "default" => &[r"[\p{P}\$\+<=>\^~\|]+", GPT2, NUMBERS, THREE_ASCII_DIGITS],
        "gpt-2" | "phi-2" | "gigachat" | "a.x-4.0" | "mellum" | "mpt" | "olmo" | "jais" | "trillion" | "exaone4"
        | "granite-docling" => &[GPT2],
        "llama3" | "llama-v3" | "llama-bpe" | "falcon3" | "falcon-h1" | "pixtral" | "midm-2.0" | "lfm2" | "dbrx"
        | "smaug-bpe" | "chatglm-bpe" | "glm4" | "glm5" => &[LLAMA3],
        "qwen2" | "deepseek-r1-qwen" | "kormo" | "stablelm2" | "megrez" | "hunyuan" | "solar-open" | "grok-2" => {
            &[QWEN2]
        }
        "qwen35" => &[QWEN35],
        "deepseek-llm" => &[
            NEW_LINE,
            LETTERS_OF_DEEPSEEK,
            r"\s?[!-/:-~\x{FF01}-\x{FF0F}\x{FF1A}-\x{FF5E}\x{2018}-\x{201F}\x{3001}\x{3002}]+",
            r"\s+$",
            EAST_ASIAN_OF_DEEPSEEK,
            NUMBERS,
        ],
        "deepseek-coder" => &[NEW_LINE, r"\s?\p{L}+", r"\s?\p{P}+", EAST_ASIAN_OF_DEEPSEEK, DIGIT],
        "deepseek-v3" | "hunyuan-dense" | "joyai-llm" | "hy_v4" => &[UP_TO_THREE_DIGITS, EAST_ASIAN, DEEPSEEK3],
        "falcon" => &[r"[\p{P}\$\+<=>\^~\|`]+", GPT2, THREE_ASCII_DIGITS],
        "starcoder" | "refact" | "command-r" | "smollm" | "codeshell" | "exaone" | "minerva-7b" | "mellum2" => {
            &[DIGIT, GPT2]
        }
        "poro-chat" | "bloom" | "gpt3-finnish" => &[NO_PUNCTUATION],
        "viking" => &[NO_PUNCTUATION, DIGIT],
        "tekken" => &[TEKKEN],
        "gpt-4o" | "llama4" | "kanana2" | "talkie" | "minimax-m2" => &[GPT4O],
        "bailingmoe" | "bailingmoe2" | "llada-moe" => &[concat!(
            contraction!(),
            r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+"
        )],
        "seed-coder" => {
            &[concat!(contraction!(), r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}\r\n]+|", spaces!())]
        }
        "laguna" => &[LINES, QWEN2],
        "gemma4" => &[LINES],
        _ => return None,
    };
    let whole_pieces = matches!(name, "glm4" | "glm5" | "tekken") || (splits == [LLAMA3] && begins_by_itself(name));
    Some(Rules { splits, whole_pieces, begins: begins_by_itself(name) || matches!(name, "tekken" | "gemma4") })
}

/// The names of Llama 3's own rules, as opposed to others that only cut as it does.
fn begins_by_itself(name: &str) -> bool {
    matches!(name, "llama3" | "llama-v3" | "llama-bpe" | "falcon3" | "falcon-h1" | "pixtral" | "midm-2.0" | "lfm2")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn rules_differ_where_the_names_do() {
        assert!(rules("llama-bpe").unwrap().whole_pieces && rules("llama-bpe").unwrap().begins);
        assert!(!rules("dbrx").unwrap().whole_pieces && !rules("dbrx").unwrap().begins);
        assert!(rules("glm4").unwrap().whole_pieces && !rules("glm4").unwrap().begins);
        assert!(rules("gemma4").unwrap().begins && !rules("gemma4").unwrap().whole_pieces);
        assert!(rules("kimi-k2").is_none());
    }
}
