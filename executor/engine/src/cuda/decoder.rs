//! The decoder on a GPU: the steps of [`crate::decoder::Decoder`], over packed rows and pages in the GPU's memory. Buffers for a
//! step are taken once and grow only when a step is larger than any before, so that memory runs out between steps if it
//! does. Refuses nothing: what it cannot compute is not loaded.

use half::bf16;
use rowmill_jobs::{Error, Result};

use super::gpu::{Buffer, Gpu, Graph, Place};
use super::launch::{AttentionArguments, Norm, PrepareArguments, States, Words, place_of};
use super::layer::{Layer, Work, norm};
use super::matrix::{Layers, Matrix, Output, Values};
use super::stored;
use crate::attention::BLOCK;
use crate::decoder::Decoder;
use crate::decoder::shape::DecoderShape;
use crate::device::copies::waves;
use crate::device::memory::pages_that_fit;
use crate::device::recordings::{Recordings, Way, filled};
use crate::device::step::{Section, Step};
use crate::kv::{KvCache, KvForm};
use crate::pack::Pack;

/// Tokens that buffers are first made for: those of a full step.
const TOKENS_FIRST: usize = 8192;
/// Rows whose logits over the whole vocabulary are held at a time.
pub(super) const LOGIT_ROWS: usize = 512;

/// How a decoder uses a GPU's memory.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Memory {
    pub(crate) layers: Layers,
    /// What keys and values may take.
    pub(crate) kv_bytes_max: Option<usize>,
}

/// A decoder whose weights, keys and values are on a GPU.
#[derive(Debug)]
pub(crate) struct DeviceDecoder {
    pub(super) gpu: Gpu,
    pub(super) shape: DecoderShape,
    pub(super) embedding: Matrix,
    positions: Option<Buffer<f32>>,
    layers: Vec<Layer>,
    norm: Norm,
    /// `None`: the embedding matrix. One that is tied to it but stored in blocks is here as well, because it is read much faster.
    pub(super) output: Option<Matrix>,
    /// For each rotary embedding cosines and sines, `[context, rotary]`.
    angles: Vec<Buffer<f32>>,
    /// Rows of the output matrix that were last asked for.
    pub(super) subset: Option<(Vec<u32>, Matrix)>,
    /// `[pages, layers, 2, kv_heads, BLOCK, head_dim]`: keys, then values.
    pool: Buffer<bf16>,
    pages: usize,
    tables: Buffer<u32>,
    pub(super) logits: Buffer<f32>,
    /// What the last batch chose: the next one may go on from it before it is fetched.
    pub(super) chosen: Buffer<u32>,
    work: Option<Work>,
    /// Steps of rows that grow by one token.
    recordings: Recordings<Graph>,
}

impl DeviceDecoder {
    /// Copies a decoder, which was read to be held for a device, to the GPU of this number, and takes memory for its pages.
    pub(crate) fn new(number: usize, host: &Decoder, shape: DecoderShape, memory: Memory) -> Result<Self> {
        let mut gpu = Gpu::open(number)?;
        let parts = host.parts()?;
        gpu.make_room(stored::room(&parts, memory.layers), memory.layers)?;
        let norm = norm(&gpu, parts.norm)?;
        let layers = parts.layers.iter().map(|layer| Layer::new(&gpu, layer, memory.layers)).collect::<Result<_>>()?;
        let angles = parts.angles.iter().map(|angles| gpu.upload(angles)).collect::<Result<_>>()?;
        let positions = Some(parts.positions).filter(|positions| !positions.is_empty());
        let mut this = Self {
            // Rows are read of it, so it is rounded in any case.
            embedding: gpu.rounded(parts.embedding)?,
            positions: positions.map(|positions| gpu.upload(positions)).transpose()?,
            layers,
            norm,
            output: if shape.tied && parts.output.blocks().is_none() { None } else { Some(gpu.matrix(parts.output)?) },
            angles,
            subset: None,
            pool: gpu.buffer(0)?,
            pages: 0,
            tables: gpu.buffer(8 * TOKENS_FIRST)?,
            logits: gpu.buffer(LOGIT_ROWS * shape.vocab)?,
            chosen: gpu.buffer(2 * LOGIT_ROWS)?,
            work: None,
            recordings: Recordings::new(),
            shape,
            gpu,
        };
        this.fit_tokens(TOKENS_FIRST)?;
        this.pages = pages_that_fit(this.gpu.free_bytes()?, this.page_bytes(), memory.kv_bytes_max);
        // One more than are given away, for rows that fill a step.
        this.pool = this.gpu.zeros((this.pages + 1) * this.page_bytes() / size_of::<bf16>())?;
        Ok(this)
    }

    /// Bytes of a page.
    pub(crate) fn page_bytes(&self) -> usize {
        KvCache::page_bytes(self.shape.heads, self.shape.layers.len(), KvForm::Device)
    }

    /// Pages that there are.
    pub(crate) fn pages(&self) -> usize {
        self.pages
    }

    /// Who owns which page: of at most `pages_max` of them.
    pub(crate) fn cache(&self, pages_max: usize) -> KvCache {
        KvCache::of(self.shape.heads, self.shape.layers.len(), KvForm::Device, pages_max.min(self.pages))
    }

    /// Rows of the output matrix.
    pub(crate) fn vocab(&self) -> usize {
        self.shape.vocab
    }

    /// Starts a batch: its keys and values go into the pages, the normed states of the wanted tokens into the first rows of
    /// `x`. Returns how many those are. Waits for nothing, nor for the ids of tokens that follow the batch before.
    pub(crate) fn forward(&mut self, pack: &Pack, cache: &mut KvCache) -> Result<usize> {
        self.gpu.enter()?;
        let rows = filled(pack);
        let step = match rows {
            Some(rows) => Step::filled(pack, self.group(), rows, self.pages),
            None => Step::of(pack, self.group()),
        };
        self.fit(&step)?;
        self.gpu.write(&mut self.tables, &step.words)?;
        if !pack.follows.is_empty() {
            let pairs: Vec<u32> =
                pack.follows.iter().flat_map(|(token, place)| [*token as u32, *place as u32]).collect();
            let (ids, pairs) = (self.table(&step, Section::Ids), self.gpu.upload(&pairs)?);
            self.gpu.follow(ids, (self.chosen.place, self.shape.vocab), pairs.place, pack.follows.len())?;
        }
        for wave in waves(cache.copies()) {
            let copies = self.gpu.upload(&wave)?;
            self.gpu.copy_pages(self.pool.place, copies.place, [wave.len() / 2, self.page_bytes()])?;
        }
        cache.copies_made();
        self.start(&step, rows)?;
        Ok(pack.wanted.len())
    }

    /// Starts a step whose tables are in the GPU's memory; `rows`: of so many filled rows.
    fn start(&mut self, step: &Step, rows: Option<usize>) -> Result<()> {
        let Some(rows) = rows else { return self.compute(step) };
        match (self.recordings.way(rows), self.recordings.get(rows)) {
            (Way::Played, Some(graph)) => graph.play(),
            (Way::Recorded, _) => self.record(step, rows),
            (Way::Asked | Way::Played, _) => self.compute(step),
        }
    }

    /// Records a step and plays it; where the GPU cannot, this step and all later ones are asked for kernel by kernel.
    fn record(&mut self, step: &Step, rows: usize) -> Result<()> {
        let recorded = self.gpu.record(|| self.compute(step)).and_then(|graph| graph.play().map(|()| graph));
        match recorded {
            Ok(graph) => {
                self.recordings.keep(rows, graph);
                Ok(())
            }
            Err(_) => {
                self.recordings.refuse();
                self.compute(step)
            }
        }
    }

    /// Asks for all kernels of a step. Names nothing but buffers that stay, and numbers that steps of as many filled rows have in
    /// common.
    fn compute(&self, step: &Step) -> Result<()> {
        let (gpu, work, hidden) = (&self.gpu, self.work()?, self.shape.hidden);
        let (tokens, wanted) = (step.len(Section::Ids), step.len(Section::Wanted));
        let mut h = States { at: work.h.place, tokens, hidden };
        let words = Words {
            ids: self.table(step, Section::Ids),
            positions: self.table(step, Section::Positions),
            words: words_of(&self.embedding)?,
            table: place_of(self.positions.as_ref()),
        };
        gpu.embed(h, &words, self.shape.embedding_multiplier)?;
        for (index, layer) in self.layers.iter().enumerate() {
            gpu.norm(States { at: work.x.place, ..h }, h.at, &layer.before[0])?;
            gpu.multiply(&layer.qkv, work.x.place, h.tokens, Output::Rounded(work.qkv.place))?;
            gpu.prepare(&self.prepare(index, layer, step)?)?;
            let mut context = work.context.place;
            let last = index + 1 == self.layers.len();
            if last && wanted == 0 {
                return Ok(());
            }
            let tables = self.tables.place;
            gpu.attend(self.attention(index, layer)?, self.shape.heads.head_dim, step, tables)?;
            if last && wanted < h.tokens {
                // After the last attention only the wanted tokens matter. The queries' place is free by then.
                let rows = self.table(step, Section::Wanted);
                gpu.gather(work.last.place, h.at, rows, [wanted, hidden * size_of::<f32>()])?;
                gpu.gather(work.qkv.place, context, rows, [wanted, layer.out.inputs * size_of::<bf16>()])?;
                (h, context) = (States { at: work.last.place, tokens: wanted, hidden }, work.qkv.place);
            }
            self.add(h, &layer.out, context, layer.after[0].as_ref())?;
            gpu.norm(States { at: work.x.place, ..h }, h.at, &layer.before[1])?;
            gpu.multiply(&layer.up, work.x.place, h.tokens, Output::Rounded(work.up.place))?;
            let inner = States { at: work.inner.place, tokens: h.tokens, hidden: layer.down.inputs };
            let function = (u32::from(layer.gated), layer.activation);
            gpu.activate(inner, work.up.place, place_of(layer.up.bias.as_ref()), function)?;
            self.add(h, &layer.down, work.inner.place, layer.after[1].as_ref())?;
        }
        gpu.norm(States { at: work.x.place, ..h }, h.at, &self.norm)
    }

    /// `h += multiplier * norm(x · matrix + bias)`; in the product itself where it is only a sum.
    fn add(&self, h: States, matrix: &Matrix, x: Place, after: Option<&Norm>) -> Result<()> {
        let multiplier = self.shape.residual_multiplier;
        if matrix.bias.is_none() && after.is_none() {
            return self.gpu.multiply(matrix, x, h.tokens, Output::Added(h.at, multiplier));
        }
        let branch = self.work()?.branch.place;
        self.gpu.multiply(matrix, x, h.tokens, Output::Floats(branch, 1.0))?;
        self.gpu.add_branch(h, branch, place_of(matrix.bias.as_ref()), after, multiplier)
    }

    fn prepare(&self, index: usize, layer: &Layer, step: &Step) -> Result<PrepareArguments> {
        let heads = self.shape.heads;
        let [query_norm, key_norm] = match &layer.qk_norms {
            Some(norms) => norms.each_ref().map(|norm| norm.weight.place),
            None => [Place::NOWHERE; 2],
        };
        let (keys, values) = self.layer_pages(index);
        Ok(PrepareArguments {
            qkv: self.work()?.qkv.place.address(),
            bias: place_of(layer.qkv.bias.as_ref()).address(),
            query_norm: query_norm.address(),
            key_norm: key_norm.address(),
            angles: place_of(self.angles.get(layer.rope).filter(|_| self.shape.rotary > 0)).address(),
            positions: self.table(step, Section::Positions).address(),
            writes: self.table(step, Section::Writes).address(),
            keys: keys.address(),
            values: values.address(),
            page_stride: self.page_stride(),
            tokens: step.len(Section::Ids) as u32,
            written: (step.len(Section::Writes) / 2) as u32,
            heads: heads.heads as u32,
            kv_heads: heads.kv_heads as u32,
            size: heads.head_dim as u32,
            rotary: self.shape.rotary as u32,
            whole: u32::from(layer.whole),
            epsilon: self.shape.norm_epsilon,
        })
    }

    /// A layer's attention, but for the step's tables.
    fn attention(&self, index: usize, layer: &Layer) -> Result<AttentionArguments> {
        let (heads, work) = (self.shape.heads, self.work()?);
        let (keys, values) = self.layer_pages(index);
        Ok(AttentionArguments {
            queries: work.qkv.place.address(),
            query_bias: 0,
            keys: keys.address(),
            values: values.address(),
            out: work.context.place.address(),
            tiles: 0,
            rows: 0,
            tables: 0,
            page_stride: self.page_stride(),
            query_stride: layer.qkv.outputs as u32,
            key_stride: heads.head_dim as u32,
            head_stride: (BLOCK * heads.head_dim) as u32,
            heads: heads.heads as u32,
            group: self.group() as u32,
            window: layer.window,
            causal: 1,
            scale: self.shape.scale,
            softcap: self.shape.softcap.unwrap_or(0.0),
        })
    }

    /// A layer's keys and values in the first page.
    fn layer_pages(&self, index: usize) -> (Place, Place) {
        let numbers = self.shape.heads.kv_heads * BLOCK * self.shape.heads.head_dim;
        let keys = self.pool.place.behind::<bf16>(2 * index * numbers);
        (keys, keys.behind::<bf16>(numbers))
    }

    fn page_stride(&self) -> u64 {
        (self.page_bytes() / size_of::<bf16>()) as u64
    }

    /// Heads that share a key.
    fn group(&self) -> usize {
        self.shape.heads.heads / self.shape.heads.kv_heads
    }

    fn table(&self, step: &Step, section: Section) -> Place {
        self.tables.place.behind::<u32>(step.place(section).start)
    }

    pub(super) fn work(&self) -> Result<&Work> {
        self.work.as_ref().ok_or_else(|| Error::internal("the GPU's buffers were not made"))
    }

    /// Makes buffers for a step, where those that are there are too small.
    fn fit(&mut self, step: &Step) -> Result<()> {
        if step.words.len() > self.tables.len {
            self.recordings.forget();
            self.tables = self.gpu.buffer(step.words.len().next_power_of_two())?;
        }
        self.fit_tokens(step.len(Section::Ids))
    }

    fn fit_tokens(&mut self, tokens: usize) -> Result<()> {
        if self.work.as_ref().is_some_and(|work| work.tokens >= tokens) {
            return Ok(());
        }
        self.recordings.forget();
        let before = self.work.take().map_or(0, |work| work.tokens);
        let made = Work::new(&self.gpu, &self.shape, &self.layers, tokens.next_multiple_of(1024));
        let error = match made {
            Ok(work) => {
                self.work = Some(work);
                return Ok(());
            }
            Err(error) => error,
        };
        // A smaller step must find what it found before.
        if before > 0 {
            self.work = Some(Work::new(&self.gpu, &self.shape, &self.layers, before)?);
        }
        Err(error)
    }
}

/// Where tokens' vectors are.
fn words_of(embedding: &Matrix) -> Result<Place> {
    match &embedding.values {
        Values::Rounded(values) => Ok(values.place),
        Values::Blocks(_) | Values::Eights(_) => Err(Error::internal("the embedding matrix was not rounded")),
    }
}
