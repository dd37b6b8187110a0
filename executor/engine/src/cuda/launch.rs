//! The engine's kernels by name, with their arguments as Rust knows them: how a launch is shaped, and the structures that both
//! sides lay out alike. The kernels themselves are in the `.cu` files beside this one.
#![expect(unsafe_code, reason = "says of two structures that a GPU can take them as they are")]

use candle_core::cuda_backend::cudarc::driver::DeviceRepr;
use rowmill_jobs::Result;
use rowmill_jobs::spec::Pooling;

use super::gpu::{Argument, Buffer, Gpu, Place};
use crate::attention::BLOCK;
use crate::device::step::{Section, Step};

/// Kernels of attention.cu.
pub(super) const ATTENTION: [&str; 10] = [
    "attend_prompt_32",
    "attend_prompt_64",
    "attend_prompt_96",
    "attend_prompt_128",
    "attend_prompt_256",
    "attend_step_32",
    "attend_step_64",
    "attend_step_96",
    "attend_step_128",
    "attend_step_256",
];
/// Kernels of layers.cu.
pub(super) const LAYERS: [&str; 10] = [
    "follow",
    "embed",
    "embed_normed",
    "norm_rows",
    "add_branch",
    "add_norm",
    "activate",
    "prepare",
    "gather",
    "copy_pages",
];
/// Kernels of answers.cu.
pub(super) const ANSWERS: [&str; 2] = ["choose", "pool"];

/// Threads of a block that has a warp for each of four tokens, and of most others.
const THREADS: usize = 128;
/// Tokens of such a block.
const WARPS: usize = 4;
/// Threads of a block in answers.cu.
const ANSWER_THREADS: usize = 256;
/// Blocks that copy one page.
const BLOCKS_A_PAGE: usize = 16;

/// What `choose` says where no token is allowed.
pub(super) const NONE_ALLOWED: u32 = u32::MAX;
/// What it says where a logit is not finite.
pub(super) const NOT_FINITE: u32 = u32::MAX - 1;

/// `struct Attention` of attention.cu.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub(super) struct AttentionArguments {
    pub(super) queries: u64,
    pub(super) query_bias: u64,
    pub(super) keys: u64,
    pub(super) values: u64,
    pub(super) out: u64,
    pub(super) tiles: u64,
    pub(super) rows: u64,
    pub(super) tables: u64,
    pub(super) page_stride: u64,
    pub(super) query_stride: u32,
    pub(super) key_stride: u32,
    pub(super) head_stride: u32,
    pub(super) heads: u32,
    pub(super) group: u32,
    pub(super) window: u32,
    pub(super) causal: u32,
    pub(super) scale: f32,
    pub(super) softcap: f32,
}

// SAFETY: plain numbers in C's layout.
unsafe impl DeviceRepr for AttentionArguments {}

/// `struct Prepare` of layers.cu.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub(super) struct PrepareArguments {
    pub(super) qkv: u64,
    pub(super) bias: u64,
    pub(super) query_norm: u64,
    pub(super) key_norm: u64,
    pub(super) angles: u64,
    pub(super) positions: u64,
    pub(super) writes: u64,
    pub(super) keys: u64,
    pub(super) values: u64,
    pub(super) page_stride: u64,
    pub(super) tokens: u32,
    pub(super) written: u32,
    pub(super) heads: u32,
    pub(super) kv_heads: u32,
    pub(super) size: u32,
    pub(super) rotary: u32,
    pub(super) whole: u32,
    pub(super) epsilon: f32,
}

// SAFETY: plain numbers in C's layout.
unsafe impl DeviceRepr for PrepareArguments {}

/// A norm's weights on a GPU.
#[derive(Debug)]
pub(super) struct Norm {
    pub(super) weight: Buffer<f32>,
    /// Of layer norms.
    pub(super) bias: Option<Buffer<f32>>,
    pub(super) epsilon: f32,
}

impl Norm {
    /// Copies a norm's weights to a GPU.
    pub(super) fn new(gpu: &Gpu, weight: &[f32], bias: Option<&[f32]>, epsilon: f32) -> Result<Self> {
        Ok(Self { weight: gpu.upload(weight)?, bias: bias.map(|bias| gpu.upload(bias)).transpose()?, epsilon })
    }
}

/// What `activate` applies; as `Activation` in layers.cu.
#[derive(Debug, Clone, Copy)]
pub(super) enum Activation {
    Silu = 0,
    Gelu = 1,
    GeluTanh = 2,
    Relu = 3,
}

/// Where a buffer is, if there is one.
pub(super) fn place_of<T>(buffer: Option<&Buffer<T>>) -> Place {
    buffer.map_or(Place::NOWHERE, |buffer| buffer.place)
}

/// What is added to tokens' embeddings by their positions.
pub(super) struct Words {
    pub(super) ids: Place,
    pub(super) positions: Place,
    pub(super) words: Place,
    pub(super) table: Place,
}

/// Rows of a matrix of states.
#[derive(Debug, Clone, Copy)]
pub(super) struct States {
    pub(super) at: Place,
    pub(super) tokens: usize,
    pub(super) hidden: usize,
}

impl States {
    fn sizes(self) -> [Argument; 2] {
        [Argument::Number(self.tokens as u32), Argument::Number(self.hidden as u32)]
    }

    fn grid(self) -> [usize; 2] {
        [self.tokens.div_ceil(WARPS), 1]
    }
}

impl Gpu {
    /// Ids of tokens from what was chosen for those before them, of a vocabulary of so many: `pairs` has so many tokens and places.
    pub(super) fn follow(&self, ids: Place, (chosen, vocab): (Place, usize), pairs: Place, count: usize) -> Result<()> {
        let places = [ids, chosen, pairs].map(Argument::At);
        let arguments = [&places[..], &[count as u32, vocab as u32].map(Argument::Number)].concat();
        self.launch("follow", [count.div_ceil(THREADS), 1], THREADS, &arguments)
    }

    /// Embeddings of tokens into `h` (`f32`).
    pub(super) fn embed(&self, h: States, words: &Words, multiplier: f32) -> Result<()> {
        let places = [h.at, words.ids, words.positions, words.words, words.table].map(Argument::At);
        let arguments = [&places[..], &h.sizes(), &[Argument::Real(multiplier)]].concat();
        self.launch("embed", h.grid(), THREADS, &arguments)
    }

    /// Normed embeddings of tokens with the first type's vector into `x` (`bf16`).
    pub(super) fn embed_normed(&self, x: States, words: &Words, token_type: Place, norm: &Norm) -> Result<()> {
        let places = [x.at, words.ids, words.positions, words.words, words.table, token_type];
        let norms = [norm.weight.place, place_of(norm.bias.as_ref())];
        let places = [&places[..], &norms].concat();
        let places: Vec<Argument> = places.into_iter().map(Argument::At).collect();
        let arguments = [&places[..], &x.sizes(), &[Argument::Real(norm.epsilon)]].concat();
        self.launch("embed_normed", x.grid(), THREADS, &arguments)
    }

    /// `x = norm(h)`, of `f32` to `bf16`.
    pub(super) fn norm(&self, x: States, h: Place, norm: &Norm) -> Result<()> {
        let places = [x.at, h, norm.weight.place, place_of(norm.bias.as_ref())].map(Argument::At);
        let arguments = [&places[..], &x.sizes(), &[Argument::Real(norm.epsilon)]].concat();
        self.launch("norm_rows", x.grid(), THREADS, &arguments)
    }

    /// `h += multiplier * norm(branch + bias)`, of `f32`.
    pub(super) fn add_branch(
        &self,
        h: States,
        branch: Place,
        bias: Place,
        norm: Option<&Norm>,
        multiplier: f32,
    ) -> Result<()> {
        let weight = norm.map_or(Place::NOWHERE, |norm| norm.weight.place);
        let norm_bias = norm.map_or(Place::NOWHERE, |norm| place_of(norm.bias.as_ref()));
        let places = [h.at, branch, bias, weight, norm_bias].map(Argument::At);
        let epsilon = norm.map_or(0.0, |norm| norm.epsilon);
        let arguments = [&places[..], &h.sizes(), &[epsilon, multiplier].map(Argument::Real)].concat();
        self.launch("add_branch", h.grid(), THREADS, &arguments)
    }

    /// `x = norm(x + y + bias)`, of `bf16`.
    pub(super) fn add_norm(&self, x: States, y: Place, bias: Place, norm: &Norm) -> Result<()> {
        let places = [x.at, y, bias, norm.weight.place, place_of(norm.bias.as_ref())].map(Argument::At);
        let arguments = [&places[..], &x.sizes(), &[Argument::Real(norm.epsilon)]].concat();
        self.launch("add_norm", x.grid(), THREADS, &arguments)
    }

    /// Activated inner states `[tokens, width]` of a product, gated where its rows are twice as long.
    pub(super) fn activate(
        &self,
        out: States,
        product: Place,
        bias: Place,
        (gated, function): (u32, Activation),
    ) -> Result<()> {
        let places = [out.at, product, bias].map(Argument::At);
        let arguments = [&places[..], &out.sizes(), &[gated, function as u32].map(Argument::Number)].concat();
        self.launch("activate", [(out.tokens * out.hidden).div_ceil(8 * THREADS), 1], THREADS, &arguments)
    }

    /// Queries, keys and values of a product, to attention and into the pages.
    pub(super) fn prepare(&self, arguments: &PrepareArguments) -> Result<()> {
        self.launch_with("prepare", [(arguments.tokens + arguments.written) as usize, 1], THREADS, arguments)
    }

    /// Attention of a step whose tables are at `tables`; `arguments` are complete but for those.
    pub(super) fn attend(&self, arguments: AttentionArguments, size: usize, step: &Step, tables: Place) -> Result<()> {
        let at = |section| tables.behind::<u32>(step.place(section).start).address();
        let kv_heads = (arguments.heads / arguments.group) as usize;
        // As STEP_WARPS in attention.cu.
        let step_threads = if size > 128 { THREADS / 2 } else { THREADS };
        for (section, kind, threads) in
            [(Section::PromptTiles, "prompt", THREADS), (Section::StepTiles, "step", step_threads)]
        {
            let own = AttentionArguments {
                tiles: at(section),
                rows: at(Section::Rows),
                tables: at(Section::Pages),
                ..arguments
            };
            self.launch_with(&format!("attend_{kind}_{size}"), [step.len(section) / 2, kv_heads], threads, &own)?;
        }
        Ok(())
    }

    /// `to[i] = from[rows[i]]`, of rows that have `bytes` bytes, a multiple of 16.
    pub(super) fn gather(&self, to: Place, from: Place, rows: Place, [count, bytes]: [usize; 2]) -> Result<()> {
        let places = [to, from, rows].map(Argument::At);
        let arguments = [&places[..], &[count as u32, (bytes / 16) as u32].map(Argument::Number)].concat();
        self.launch("gather", [count.div_ceil(WARPS), 1], THREADS, &arguments)
    }

    /// Copies pages of `bytes` bytes, a multiple of 16: `copies` has so many pairs.
    pub(super) fn copy_pages(&self, pages: Place, copies: Place, [count, bytes]: [usize; 2]) -> Result<()> {
        let arguments = [Argument::At(pages), Argument::At(copies), Argument::Wide((bytes / 16) as u64)];
        self.launch("copy_pages", [count, BLOCKS_A_PAGE], THREADS, &arguments)
    }

    /// The best allowed token of each row of logits; `masks` says where their places and bits are.
    pub(super) fn choose(&self, chosen: Place, logits: States, masks: [Place; 2], words: usize) -> Result<()> {
        let places = [chosen, logits.at, masks[0], masks[1]].map(Argument::At);
        let numbers = [logits.hidden as u32, words as u32].map(Argument::Number);
        self.launch("choose", [logits.tokens, 1], ANSWER_THREADS, &[&places[..], &numbers].concat())
    }

    /// One vector (`f32`) of each of so many rows of states.
    pub(super) fn pool(&self, out: Place, states: States, rows: (Place, usize), pooling: Pooling) -> Result<()> {
        let kind: u32 = match pooling {
            Pooling::Mean => 0,
            Pooling::Cls => 1,
            Pooling::Last => 2,
            Pooling::Max => 3,
        };
        let places = [out, states.at, rows.0].map(Argument::At);
        let numbers = [states.hidden as u32, kind].map(Argument::Number);
        let grid = [rows.1, states.hidden.div_ceil(ANSWER_THREADS)];
        self.launch("pool", grid, ANSWER_THREADS, &[&places[..], &numbers].concat())
    }
}

// What the kernels know as well: slots of a page, and sizes of structures.
const _: () = assert!(BLOCK == 32 && size_of::<AttentionArguments>() == 112 && size_of::<PrepareArguments>() == 112);
