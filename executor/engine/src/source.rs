//! Where a model's files are: finds configuration, tokenizer and weights in a folder, or takes a GGUF file as it is.
//! Refuses what it will never read (pickle in any disguise) and says by name what is missing. Reads no weights.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use rowmill_jobs::{Error, Result};
use serde_json::Value;

/// A model's files, found and named but not yet read.
#[derive(Debug, Clone)]
pub(crate) enum Source {
    /// A folder in the layout of the Hugging Face hub.
    Folder(Folder),
    /// One GGUF file that carries everything.
    Gguf(PathBuf),
}

/// A folder with `config.json`, `tokenizer.json` and safetensors.
#[derive(Debug, Clone)]
pub(crate) struct Folder {
    /// The folder the files are in.
    pub(crate) root: PathBuf,
    /// `config.json`, parsed.
    pub(crate) config: Value,
    /// Safetensors files, sorted.
    pub(crate) weights: Vec<PathBuf>,
    /// Every file that loading reads, sorted.
    pub(crate) files: Vec<PathBuf>,
}

const PICKLE_ENDINGS: [&str; 5] = ["bin", "pt", "pth", "ckpt", "pkl"];

/// Files that are read when they are there.
const OPTIONAL: [&str; 9] = [
    "1_Pooling/config.json",
    "2_Dense/config.json",
    "2_Dense/model.safetensors",
    "chat_template.jinja",
    "generation_config.json",
    "model.safetensors.index.json",
    "modules.json",
    "sentence_bert_config.json",
    "tokenizer_config.json",
];

impl Source {
    /// Looks at `path`: a folder or a GGUF file.
    pub(crate) fn find(path: &Path) -> Result<Self> {
        let path = std::path::absolute(path).map_err(|e| unreadable(path, e))?;
        let meta = std::fs::metadata(&path)
            .map_err(|e| unreadable(&path, e).hint("a model's source is a folder with safetensors, or a .gguf file"))?;
        if meta.is_dir() { find_in_folder(&path) } else { find_file(path) }
    }
}

fn find_file(path: PathBuf) -> Result<Source> {
    refuse_pickle(&path)?;
    if magic(&path)?.starts_with(b"GGUF") {
        return Ok(Source::Gguf(path));
    }
    let error = Error::invalid(format!("{} is not a model", path.display()));
    Err(match extension(&path).as_str() {
        "safetensors" => {
            error.hint("name the folder, so that config.json and tokenizer.json are found beside the weights")
        }
        "gguf" => error.hint("the file does not begin with `GGUF`: it is damaged or was not downloaded whole"),
        _ => error.hint("a model's source is a folder with safetensors, or a .gguf file"),
    })
}

fn find_in_folder(root: &Path) -> Result<Source> {
    let names = list(root)?;
    let ggufs: Vec<&PathBuf> = names.iter().filter(|path| extension(path) == "gguf").collect();
    let safetensors = names.iter().any(|path| extension(path) == "safetensors");
    if !safetensors && !ggufs.is_empty() {
        return match ggufs[..] {
            [one] => find_file(one.clone()),
            _ => Err(Error::invalid(format!("{} holds {} GGUF files", root.display(), ggufs.len()))
                .hint("name the one to use: source = '<folder>/<file>.gguf'")),
        };
    }
    let config_file = root.join("config.json");
    if !config_file.is_file() {
        return Err(missing(
            root,
            "config.json",
            "a model folder has config.json, tokenizer.json and model.safetensors",
        ));
    }
    let config = read_json(&config_file)?;
    let weights = find_weights(root, &names)?;
    let tokenizer = root.join("tokenizer.json");
    if !tokenizer.is_file() {
        return Err(missing(
            root,
            "tokenizer.json",
            "Rowmill reads the `tokenizers` format; save it with AutoTokenizer.from_pretrained(…).save_pretrained(…)",
        ));
    }
    let mut files = weights.clone();
    files.push(config_file);
    files.push(tokenizer);
    files.extend(OPTIONAL.iter().map(|name| root.join(name)).filter(|path| path.is_file()));
    files.sort();
    Ok(Source::Folder(Folder { root: root.to_path_buf(), config, weights, files }))
}

fn find_weights(root: &Path, names: &[PathBuf]) -> Result<Vec<PathBuf>> {
    let index = root.join("model.safetensors.index.json");
    let mut weights = if index.is_file() {
        let parsed = read_json(&index)?;
        let map = parsed.get("weight_map").and_then(Value::as_object).ok_or_else(|| {
            Error::invalid(format!("{} has no `weight_map`", index.display())).hint("download the model again")
        })?;
        let mut shards: Vec<PathBuf> = Vec::new();
        for name in map.values().filter_map(Value::as_str) {
            // A name with a folder in it could lead anywhere on this machine.
            if Path::new(name).file_name() != Some(std::ffi::OsStr::new(name)) {
                return Err(Error::invalid(format!(
                    "{} names `{name}`, which is not a file beside it",
                    index.display()
                )));
            }
            shards.push(root.join(name));
        }
        shards.sort();
        shards.dedup();
        if let Some(absent) = shards.iter().find(|path| !path.is_file()) {
            return Err(Error::invalid(format!("weights file {} is missing", absent.display()))
                .with("named in", index.display())
                .hint("download the model again, with all its shards"));
        }
        shards
    } else if root.join("model.safetensors").is_file() {
        vec![root.join("model.safetensors")]
    } else {
        names.iter().filter(|path| extension(path) == "safetensors").cloned().collect()
    };
    if weights.is_empty() {
        for name in names.iter().filter(|path| PICKLE_ENDINGS.contains(&extension(path).as_str())) {
            refuse_pickle(name)?;
        }
        return Err(missing(root, "model.safetensors", "Rowmill reads safetensors and GGUF weights"));
    }
    weights.sort();
    for path in &weights {
        refuse_pickle(path)?;
    }
    Ok(weights)
}

/// Refuses files that hold, or could hold, pickled Python: loading them would run code of whoever made them.
fn refuse_pickle(path: &Path) -> Result<()> {
    let head = magic(path)?;
    let by_name = PICKLE_ENDINGS.contains(&extension(path).as_str()) && !head.starts_with(b"GGUF");
    // torch.save writes a zip file; before version 1.6 it wrote a bare pickle, which begins with 0x80 and its protocol.
    let by_content =
        head.starts_with(b"PK\x03\x04") || (head[0] == 0x80 && (1..=5).contains(&head[1]) && head[2..] != [0; 6]);
    if by_name || by_content {
        return Err(Error::invalid(format!("{} holds pickled Python, which Rowmill does not open", path.display())).hint(
            "Rowmill reads safetensors and GGUF only; convert with \
             AutoModel.from_pretrained(…).save_pretrained(…, safe_serialization=True) on a machine that may run its code",
        ));
    }
    Ok(())
}

fn magic(path: &Path) -> Result<[u8; 8]> {
    let mut head = [0u8; 8];
    let mut file = File::open(path).map_err(|e| unreadable(path, e))?;
    let mut filled = 0;
    while filled < head.len() {
        match file.read(&mut head[filled..]).map_err(|e| unreadable(path, e))? {
            0 => break,
            n => filled += n,
        }
    }
    Ok(head)
}

fn list(root: &Path) -> Result<Vec<PathBuf>> {
    let mut names = Vec::new();
    for entry in std::fs::read_dir(root).map_err(|e| unreadable(root, e))? {
        names.push(entry.map_err(|e| unreadable(root, e))?.path());
    }
    names.sort();
    Ok(names)
}

fn extension(path: &Path) -> String {
    path.extension().unwrap_or_default().to_string_lossy().to_lowercase()
}

fn missing(root: &Path, name: &str, hint: &str) -> Error {
    Error::invalid(format!("model folder {} has no {name}", root.display())).hint(hint)
}

/// An error for a file that could not be opened or read.
pub(crate) fn unreadable(path: &Path, error: std::io::Error) -> Error {
    Error::invalid(format!("cannot read {}", path.display())).caused_by(error)
}

/// An error for a weights file that is not what it says it is.
pub(crate) fn damaged(path: &Path, why: &str) -> Error {
    Error::invalid(format!("{} is damaged or was not downloaded whole: {why}", path.display()))
        .hint("download the file again and compare its sha256")
}

/// Reads a JSON file.
pub(crate) fn read_json(path: &Path) -> Result<Value> {
    let bytes = std::fs::read(path).map_err(|e| unreadable(path, e))?;
    serde_json::from_slice(&bytes).map_err(|e| {
        Error::invalid(format!("{} is not valid JSON", path.display())).caused_by(e).hint("download the model again")
    })
}

/// Reads a JSON file of the folder, if it is there.
pub(crate) fn read_json_if_there(root: &Path, name: &str) -> Result<Option<Value>> {
    let path = root.join(name);
    if path.is_file() { read_json(&path).map(Some) } else { Ok(None) }
}
