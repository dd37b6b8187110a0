//! The encoder on a GPU: whole texts, packed without padding, to one vector each. A key's bias changes no weight, because it
//! adds the same to all scores of a query, and a value's bias adds itself to every sum of values: so the first is left out, the
//! second put into what follows, and only queries get theirs on their way into attention.

use std::sync::{Mutex, PoisonError};

use half::bf16;
use rowmill_jobs::spec::Pooling;
use rowmill_jobs::{Error, Result};

use super::gpu::{Buffer, Gpu, Place};
use super::launch::{Activation, AttentionArguments, Norm, States, Words, place_of};
use super::matrix::{Matrix, Output};
use super::staging::Reading;
use crate::device::shelf::BYTES_MAX;
use crate::device::step::{Section, Step, texts};
use crate::encoder::shape::{Activation as HostActivation, Gate};
use crate::encoder::{Encoder, LayerParts, neighbours};
use crate::linear::Linear;

/// Tokens that go through the layers together: enough to keep the whole GPU busy.
const TOKENS_TOGETHER: usize = 65_536;
/// Tokens that are computed before anybody looks whether it is to stop: their vectors are fetched at once.
const TOKENS: usize = 4 * TOKENS_TOGETHER;

/// An encoder whose weights are on a GPU.
#[derive(Debug)]
pub(crate) struct DeviceEncoder {
    gpu: Gpu,
    heads: usize,
    hidden: usize,
    words: Buffer<bf16>,
    positions: Option<Buffer<f32>>,
    token_type: Buffer<f32>,
    norm: Norm,
    layers: Vec<Layer>,
    /// Whoever asks the GPU has it alone: what is asked next finds the buffers free, because the GPU does one thing after another.
    work: Mutex<Option<Work>>,
}

#[derive(Debug)]
struct Layer {
    qkv: Matrix,
    out: Matrix,
    /// With what the values' bias becomes.
    out_bias: Buffer<f32>,
    attention_norm: Norm,
    up: Matrix,
    down: Matrix,
    down_bias: Buffer<f32>,
    feed_norm: Norm,
    gated: bool,
    activation: Activation,
    scale: f32,
    window: u32,
}

/// What a batch's tokens become on their way, each `[tokens, _]`, and its tables.
#[derive(Debug)]
struct Work {
    tokens: usize,
    tables: Buffer<u32>,
    x: Buffer<bf16>,
    y: Buffer<bf16>,
    qkv: Buffer<bf16>,
    context: Buffer<bf16>,
    up: Buffer<bf16>,
    inner: Buffer<bf16>,
}

impl DeviceEncoder {
    /// Copies an encoder, which was read to be held for a device, to the GPU of this number.
    pub(crate) fn new(number: usize, host: &Encoder) -> Result<Self> {
        let gpu = Gpu::open(number)?;
        let parts = host.parts();
        let epsilon = parts.shape.norm_epsilon;
        let positions = Some(parts.positions).filter(|positions| !positions.is_empty());
        Ok(Self {
            heads: parts.shape.heads,
            hidden: parts.shape.hidden,
            words: gpu.upload(&parts.words.held()?)?,
            positions: positions.map(|positions| gpu.upload(positions)).transpose()?,
            token_type: gpu.upload(parts.token_type)?,
            norm: norm(&gpu, parts.norm, epsilon)?,
            layers: parts.layers.iter().map(|layer| Layer::new(&gpu, layer, epsilon)).collect::<Result<_>>()?,
            work: Mutex::new(None),
            gpu,
        })
    }

    /// Length of a token's vector.
    pub(crate) fn hidden(&self) -> usize {
        self.hidden
    }

    /// Tokens that are computed before anybody looks whether it is to stop.
    pub(crate) fn tokens_max(&self) -> usize {
        TOKENS
    }

    /// One vector of each text of token ids (none of them empty), `[rows, hidden]`. Of several threads one asks the GPU at a time, and
    /// all wait for their vectors together: so the GPU goes on with another's texts while one's are read.
    pub(crate) fn pooled(&self, rows: &[&[u32]], pooling: Pooling) -> Result<Vec<f32>> {
        self.gpu.enter()?;
        let mut vectors = Vec::with_capacity(rows.len() * self.hidden);
        for rows in rows.chunks((BYTES_MAX / (self.hidden * size_of::<f32>())).max(1)) {
            let reading = self.begin(rows, pooling)?;
            self.gpu.end_read(reading, &mut vectors)?;
        }
        Ok(vectors)
    }

    /// Asks for the vectors of some texts. Tables of a batch are made while the GPU computes the one before.
    fn begin(&self, rows: &[&[u32]], pooling: Pooling) -> Result<Reading<f32>> {
        // What a panic may have left there is written over.
        let mut work = self.work.lock().unwrap_or_else(PoisonError::into_inner);
        let out: Buffer<f32> = self.gpu.buffer(rows.len() * self.hidden)?;
        let mut done = 0;
        for some in neighbours(rows, TOKENS_TOGETHER) {
            let step = texts(some);
            let work = self.fit(&mut work, &step)?;
            self.gpu.write(&mut work.tables, &step.words)?;
            self.run(&step, work)?;
            let states = States { at: work.x.place, tokens: step.len(Section::Ids), hidden: self.hidden };
            let spans = (work.table(&step, Section::Rows), some.len());
            self.gpu.pool(out.place.behind::<f32>(done * self.hidden), states, spans, pooling)?;
            done += some.len();
        }
        // The buffer is given back behind its reading.
        self.gpu.begin_read(out.place, rows.len() * self.hidden)
    }

    /// Starts a batch: its last states are to be in `x`.
    fn run(&self, step: &Step, work: &Work) -> Result<()> {
        let (gpu, hidden) = (&self.gpu, self.hidden);
        let x = States { at: work.x.place, tokens: step.len(Section::Ids), hidden };
        let words = Words {
            ids: work.table(step, Section::Ids),
            positions: work.table(step, Section::Positions),
            words: self.words.place,
            table: place_of(self.positions.as_ref()),
        };
        gpu.embed_normed(x, &words, self.token_type.place, &self.norm)?;
        for layer in &self.layers {
            gpu.multiply(&layer.qkv, x.at, x.tokens, Output::Rounded(work.qkv.place))?;
            gpu.attend(self.attention(layer, work), hidden / self.heads, step, work.tables.place)?;
            gpu.multiply(&layer.out, work.context.place, x.tokens, Output::Rounded(work.y.place))?;
            gpu.add_norm(x, work.y.place, layer.out_bias.place, &layer.attention_norm)?;
            gpu.multiply(&layer.up, x.at, x.tokens, Output::Rounded(work.up.place))?;
            let inner = States { at: work.inner.place, tokens: x.tokens, hidden: layer.down.inputs };
            let function = (u32::from(layer.gated), layer.activation);
            gpu.activate(inner, work.up.place, place_of(layer.up.bias.as_ref()), function)?;
            gpu.multiply(&layer.down, work.inner.place, x.tokens, Output::Rounded(work.y.place))?;
            gpu.add_norm(x, work.y.place, layer.down_bias.place, &layer.feed_norm)?;
        }
        Ok(())
    }

    /// A layer's attention over the batch's own keys, but for its tables.
    fn attention(&self, layer: &Layer, work: &Work) -> AttentionArguments {
        let qkv = work.qkv.place;
        AttentionArguments {
            queries: qkv.address(),
            query_bias: place_of(layer.qkv.bias.as_ref()).address(),
            keys: qkv.behind::<bf16>(self.hidden).address(),
            values: qkv.behind::<bf16>(2 * self.hidden).address(),
            out: work.context.place.address(),
            tiles: 0,
            rows: 0,
            tables: 0,
            page_stride: 0,
            query_stride: layer.qkv.outputs as u32,
            key_stride: layer.qkv.outputs as u32,
            head_stride: (self.hidden / self.heads) as u32,
            heads: self.heads as u32,
            group: 1,
            window: layer.window,
            causal: 0,
            scale: layer.scale,
            softcap: 0.0,
        }
    }

    /// Buffers for a batch: those that are there, or larger ones in their place.
    fn fit<'a>(&self, work: &'a mut Option<Work>, step: &Step) -> Result<&'a mut Work> {
        let (tokens, words) = (step.len(Section::Ids), step.words.len());
        if work.as_ref().is_none_or(|work| work.tokens < tokens || work.tables.len < words) {
            let before = work.take().map_or((0, 0), |work| (work.tokens, work.tables.len));
            let tokens = tokens.max(before.0).next_multiple_of(1024);
            *work = Some(Work::new(&self.gpu, &self.layers, [tokens, words.max(before.1).next_power_of_two()])?);
        }
        work.as_mut().ok_or_else(|| Error::internal("the GPU's buffers were not made"))
    }
}

impl Layer {
    fn new(gpu: &Gpu, parts: &LayerParts<'_>, epsilon: f32) -> Result<Self> {
        let Some(attention_norm) = parts.attention_norm else {
            return Err(Error::internal("an encoder's layer has no norm after its attention"));
        };
        let zeros = vec![0f32; parts.down.outputs];
        Ok(Self {
            qkv: gpu.matrix(parts.qkv)?,
            out: gpu.matrix(parts.out)?,
            out_bias: gpu.upload(&bias_behind_values(parts.qkv, parts.out)?)?,
            attention_norm: norm(gpu, attention_norm, epsilon)?,
            up: gpu.matrix(parts.up)?,
            down: gpu.matrix(parts.down)?,
            down_bias: gpu.upload(parts.down.bias.as_deref().unwrap_or(&zeros))?,
            feed_norm: norm(gpu, parts.feed_norm, epsilon)?,
            gated: parts.gate == Gate::FirstHalf,
            activation: match parts.activation {
                HostActivation::Silu => Activation::Silu,
                HostActivation::Gelu => Activation::Gelu,
                HostActivation::GeluTanh => Activation::GeluTanh,
                HostActivation::Relu => Activation::Relu,
                HostActivation::Tanh | HostActivation::Identity => {
                    return Err(Error::internal("an encoder's activation was not refused"));
                }
            },
            scale: parts.scale,
            window: parts.window.map_or(0, |window| u32::try_from(window).unwrap_or(0)),
        })
    }
}

impl Work {
    fn new(gpu: &Gpu, layers: &[Layer], [tokens, words]: [usize; 2]) -> Result<Self> {
        let widest = |width: fn(&Layer) -> usize| layers.iter().map(width).max().unwrap_or(0);
        let hidden = widest(|layer| layer.out.outputs);
        Ok(Self {
            tokens,
            tables: gpu.buffer(words)?,
            x: gpu.buffer(tokens * hidden)?,
            y: gpu.buffer(tokens * hidden)?,
            qkv: gpu.buffer(tokens * widest(|layer| layer.qkv.outputs))?,
            context: gpu.buffer(tokens * hidden)?,
            up: gpu.buffer(tokens * widest(|layer| layer.up.outputs))?,
            inner: gpu.buffer(tokens * widest(|layer| layer.down.inputs))?,
        })
    }

    fn table(&self, step: &Step, section: Section) -> Place {
        self.tables.place.behind::<u32>(step.place(section).start)
    }
}

fn norm(gpu: &Gpu, (weight, bias): (&[f32], &[f32]), epsilon: f32) -> Result<Norm> {
    Norm::new(gpu, weight, Some(bias), epsilon)
}

/// The bias of `out` with what it makes of the values' bias, `[hidden]`.
fn bias_behind_values(qkv: &Linear, out: &Linear) -> Result<Vec<f32>> {
    let mut bias = out.bias.clone().unwrap_or_else(|| vec![0.0; out.outputs]);
    if let Some(values) = qkv.bias.as_ref().and_then(|bias| bias.get(2 * out.inputs..)) {
        let matrix = out.held()?;
        for (bias, row) in bias.iter_mut().zip(matrix.chunks_exact(out.inputs)) {
            *bias += row.iter().zip(values).map(|(weight, value)| weight.to_f32() * value).sum::<f32>();
        }
    }
    Ok(bias)
}
