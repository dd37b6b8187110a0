//! How fast prompts are made: texts become token ids, as a job's rows do before anything is computed of them. Reads a model's
//! tokenizer and chat template and none of its weights.

use std::path::Path;
use std::time::Instant;

use rayon::ThreadPool;
use rayon::prelude::*;
use rowmill_jobs::infer::{Piece, Request, Task, TaskKind, TextFormat};
use rowmill_jobs::{Error, Result};

use crate::engine::threads;
use crate::gguf::{GgufFile, tokenizer as gguf_tokenizer};
use crate::prompt::{Prompter, Recipe};
use crate::prompts::ROWS_AT_ONCE;
use crate::source::{Folder, Source, read_json_if_there};
use crate::texts::{folder_texts, gguf_texts, prompter};
use crate::tokens::Tokens;

/// Rows of one call, as in a job.
const WINDOW: usize = 1024;

/// Makes a model's prompts, for who wants to know how long it takes.
#[derive(Debug)]
pub struct Prompting {
    prompter: Prompter,
    pool: ThreadPool,
}

/// What prompts of some texts came to.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Prompted {
    /// Texts, one a row.
    pub rows: usize,
    /// Bytes of the texts.
    pub bytes: usize,
    /// Token ids of all prompts together.
    pub tokens: usize,
    /// How long it took.
    pub seconds: f64,
}

impl Prompting {
    /// Reads the tokenizer of a model's folder (weights may be missing), or that of a `.gguf` file. Texts for vectors are cut
    /// to `tokens_max`; longer prompts are rows without ids. `threads` are those that make prompts.
    ///
    /// # Errors
    /// The files are missing or damaged.
    pub fn open(source: &Path, tokens_max: usize, threads_count: usize) -> Result<Self> {
        let (tokens, texts) = if source.is_dir() {
            let tokens = Tokens::from_file(&source.join("tokenizer.json"))?;
            let config = read_json_if_there(source, "config.json")?.unwrap_or_default();
            let folder = Folder { root: source.to_path_buf(), config, weights: Vec::new(), files: Vec::new() };
            (tokens, folder_texts(&folder)?)
        } else {
            match Source::find(source)? {
                Source::Gguf(path) => {
                    let file = GgufFile::open(&path)?;
                    (Tokens::new(gguf_tokenizer::tokenizer(&file)?)?, gguf_texts(&file))
                }
                Source::Folder(_) => return Err(Error::internal("a folder that is none")),
            }
        };
        let prompter = prompter(tokens, texts, u32::MAX as usize, tokens_max)?;
        Ok(Self { prompter, pool: threads("prompts", threads_count)? })
    }

    /// The prompts of these texts, each a row: of itself alone where they are for vectors, else in a chat. What was known of
    /// earlier texts helps with later ones, so that a second call may be faster than the first.
    ///
    /// # Errors
    /// The tokenizer or the chat template failed.
    pub fn measure(&self, texts: &[String], for_vectors: bool) -> Result<Prompted> {
        let template = vec![Piece::Value(0)];
        let kind = TaskKind::Complete { tokens_max: 1, format: TextFormat::Free };
        let task = Task { model: "measured".into(), kind, system: None, template: template.clone(), input: template };
        let recipe = if for_vectors { Recipe::Template } else { self.prompter.decoder_recipe(&task)? };
        let mut prompted = Prompted { rows: texts.len(), bytes: 0, tokens: 0, seconds: 0.0 };
        for window in texts.chunks(WINDOW) {
            let requests: Vec<Request> = window.iter().map(|text| Request { values: [text.clone()].into() }).collect();
            let begun = Instant::now();
            let parts = requests.par_chunks(ROWS_AT_ONCE);
            let made: Result<Vec<_>> =
                self.pool.install(|| parts.map(|part| self.prompter.prompts(&task, &recipe, part)).collect());
            prompted.seconds += begun.elapsed().as_secs_f64();
            prompted.bytes += window.iter().map(String::len).sum::<usize>();
            prompted.tokens += made?.iter().flatten().flatten().map(Vec::len).sum::<usize>();
        }
        Ok(prompted)
    }
}
