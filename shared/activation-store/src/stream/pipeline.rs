//! The threads that decode chunks and gather batches ahead of the reader.
//!
//! Each unit of work is independent: decode one chunk, permute one block's rows, or gather one batch's rows from one block.
//! Any thread takes whichever is ready. The order fixes where each result goes, so the number of threads cannot change a
//! batch. Memory is bounded by the blocks and batches in flight, whose buffers are reused.

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use workers::Worker;

use super::ahead::{Ahead, Blocks, Share};
use super::order::{BlockPlan, Sources};
use crate::pages::Planes;
use crate::shard::Decoder;
use crate::widen::{BatchElement, prefetch_row};
use crate::{Result, RowType, StoreError};

/// What the threads need to know.
#[derive(Debug, Clone)]
pub(super) struct Settings {
    pub(super) batch: usize,
    pub(super) seed: u64,
    pub(super) mixing_chunks: usize,
    pub(super) threads: usize,
    pub(super) prefetch: usize,
    /// Steps from one batch to the next.
    pub(super) every: u64,
}

/// The running threads, which start at some step; dropping the pipeline ends them.
#[derive(Debug)]
pub(super) struct Pipeline<T> {
    shared: Arc<Shared<T>>,
    threads: Vec<Worker<()>>,
}

#[derive(Debug)]
struct Shared<T> {
    sources: Arc<Sources>,
    settings: Settings,
    state: Mutex<State<T>>,
    /// Something may have become ready for a thread.
    work: Condvar,
    /// Something may have become ready for the reader.
    ready: Condvar,
}

#[derive(Debug)]
struct State<T> {
    stop: bool,
    failure: Option<StoreError>,
    /// Where the next block to open comes from.
    coming: Blocks,
    /// Asks buckets for what comes after that, if there are any.
    ahead: Option<Ahead>,
    next_id: u64,
    /// Blocks in flight, in the stream's order.
    blocks: VecDeque<Block>,
    /// Batches in flight, in the stream's order.
    batches: VecDeque<Batch<T>>,
    next_step: u64,
    free_planes: Vec<Planes>,
    free_batches: Vec<Vec<T>>,
}

#[derive(Debug)]
struct Block {
    /// Counted from the pipeline's start. (A block without rows shares its `plan.start` with the next one.)
    id: u64,
    plan: BlockPlan,
    /// Pieces of work handed out: the chunks, then the permutation.
    handed_out: usize,
    /// Pieces of work not finished.
    pending: usize,
    content: Content,
    /// The content, once it is whole.
    decoded: Option<Arc<Content>>,
    /// Rows that batches of this reader still lack.
    wanted: u64,
}

/// A decoded mixing block.
#[derive(Debug, Default)]
struct Content {
    /// The byte planes of each chunk.
    planes: Vec<Planes>,
    row_types: Vec<RowType>,
    /// The permuted rows: slot · chunk_rows + row.
    rows: Vec<u32>,
}

#[derive(Debug)]
struct Batch<T> {
    step: u64,
    /// `None` while a thread has it.
    data: Option<Vec<T>>,
    /// Rows gathered.
    filled: usize,
}

/// A piece of work.
enum Task<T> {
    Decode {
        block: u64,
        slot: usize,
        chunk: u32,
        planes: Planes,
    },
    Permute {
        block: u64,
        plan: BlockPlan,
    },
    Gather {
        step: u64,
        data: Vec<T>,
        filled: usize,
        block: u64,
        rows: std::ops::Range<usize>,
        content: Arc<Content>,
    },
}

impl<T: BatchElement> Pipeline<T> {
    /// Starts the threads; the first batch will be that of `step`.
    pub(super) fn start(sources: &Arc<Sources>, settings: &Settings, step: u64) -> Result<Pipeline<T>> {
        let position = step.checked_mul(settings.batch as u64).ok_or(StoreError::Step(step))?;
        let share = Share { batch: settings.batch as u64, first: step, every: settings.every };
        let coming = Blocks::from(sources, share, settings.seed, settings.mixing_chunks, position);
        let mut ahead = Ahead::of(&coming);
        ahead.iter_mut().for_each(|ahead| ahead.advance(0));
        let state = State {
            stop: false,
            failure: None,
            coming,
            ahead,
            next_id: 0,
            blocks: VecDeque::new(),
            batches: VecDeque::new(),
            next_step: step,
            free_planes: Vec::new(),
            free_batches: Vec::new(),
        };
        let shared = Arc::new(Shared {
            sources: sources.clone(),
            settings: settings.clone(),
            state: Mutex::new(state),
            work: Condvar::new(),
            ready: Condvar::new(),
        });
        let mut pipeline = Pipeline { shared, threads: Vec::new() };
        for _ in 0..settings.threads {
            let shared = pipeline.shared.clone();
            let thread = workers::spawn("store-read", move || shared.run())
                .map_err(StoreError::thread("the reading of a store"))?;
            pipeline.threads.push(thread);
        }
        Ok(pipeline)
    }

    /// The next batch, if it is ready; gives the threads `used` to fill again.
    pub(super) fn try_next(&self, used: &mut Vec<T>) -> Result<bool> {
        let mut state = self.shared.lock();
        Self::take_front(&mut state, used, &self.shared)
    }

    /// Waits for the next batch, for at most `patience` if there is a limit.
    pub(super) fn next_within(&self, used: &mut Vec<T>, patience: Option<Duration>) -> Result<bool> {
        let deadline = patience.map(|patience| Instant::now() + patience);
        let mut state = self.shared.lock();
        while !Self::take_front(&mut state, used, &self.shared)? {
            let ready = &self.shared.ready;
            state = match deadline {
                None => ready.wait(state).unwrap_or_else(PoisonError::into_inner),
                Some(deadline) => {
                    let left = deadline.saturating_duration_since(Instant::now());
                    if left.is_zero() {
                        return Ok(false);
                    }
                    ready.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0
                }
            };
        }
        Ok(true)
    }

    fn take_front(state: &mut State<T>, used: &mut Vec<T>, shared: &Shared<T>) -> Result<bool> {
        let ready = |batch: &Batch<T>| batch.filled == shared.settings.batch && batch.data.is_some();
        if state.batches.front().is_some_and(ready) {
            let data = state.batches.pop_front().and_then(|batch| batch.data).expect("the batch is ready");
            let old = std::mem::replace(used, data);
            if old.len() == used.len() {
                state.free_batches.push(old);
            }
            shared.work.notify_all();
            return Ok(true);
        }
        match state.failure.take() {
            Some(failure) => Err(failure),
            None => Ok(false),
        }
    }
}

impl<T> Drop for Pipeline<T> {
    fn drop(&mut self) {
        {
            let mut state = self.shared.lock();
            state.stop = true;
            state.ahead = None;
        }
        self.shared.work.notify_all();
        for thread in self.threads.drain(..) {
            // Why it stopped was told to the reader, if there still was one.
            let _ = thread.join();
        }
    }
}

impl<T> Shared<T> {
    fn lock(&self) -> MutexGuard<'_, State<T>> {
        // A thread that panicked while it held the lock has stopped all others; nobody works with what it left.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn fail(&self, error: StoreError) {
        let mut state = self.lock();
        state.stop = true;
        state.failure.get_or_insert(error);
        self.work.notify_all();
        self.ready.notify_all();
    }
}

impl<T: BatchElement> Shared<T> {
    /// What each thread does. The reader would wait for ever for a thread that ended silently.
    fn run(&self) {
        match workers::catch("reading of the store", || self.work_until_stopped()) {
            Ok(Ok(())) => {}
            Ok(Err(error)) => self.fail(error),
            Err(died) => self.fail(died.into()),
        }
    }

    fn work_until_stopped(&self) -> Result<()> {
        let mut decoder = Decoder::new()?;
        loop {
            let task = {
                let mut state = self.lock();
                loop {
                    if state.stop {
                        return Ok(());
                    }
                    if let Some(task) = state.next_task(self) {
                        break task;
                    }
                    state = self.work.wait(state).unwrap_or_else(PoisonError::into_inner);
                }
            };
            self.perform(task, &mut decoder)?;
        }
    }

    fn perform(&self, task: Task<T>, decoder: &mut Decoder) -> Result<()> {
        match task {
            Task::Decode { block, slot, chunk, mut planes } => {
                let (store, chunk) = self.sources.chunk(chunk);
                planes.resize(store.chunk_bytes())?;
                store.decode_chunk(chunk, decoder, &mut planes)?;
                self.lock().finish_part(block, |content| content.planes[slot] = planes);
            }
            Task::Permute { block, plan } => {
                let rows = self.sources.block_rows(&plan.chunks, self.settings.seed, plan.epoch, plan.block);
                let row_types =
                    plan.chunks.iter().map(|&chunk| self.sources.chunk(chunk).0.row_type()).collect();
                self.lock().finish_part(block, |content| {
                    content.rows = rows;
                    content.row_types = row_types;
                });
            }
            Task::Gather { step, mut data, filled, block, rows, content } => {
                let taken = rows.len();
                self.gather(&content, rows, &mut data[filled * self.sources.width()..])?;
                // Before the lock: whoever sees all rows gathered takes the buffers back.
                drop(content);
                self.lock().finish_gather(step, block, data, taken);
                self.ready.notify_one();
            }
        }
        self.work.notify_all();
        Ok(())
    }

    /// Rows `rows` of a block into the beginning of `out`.
    fn gather(&self, content: &Content, rows: std::ops::Range<usize>, out: &mut [T]) -> Result<()> {
        // Rows asked for before they are needed: 2 to 8 serve equally well.
        const AHEAD: usize = 4;
        let (width, chunk_rows) = (self.sources.width(), self.sources.chunk_rows());
        let place = |row: u32| (row as usize / chunk_rows, row as usize % chunk_rows);
        let rows = &content.rows[rows];
        for (index, out) in out.chunks_exact_mut(width).take(rows.len()).enumerate() {
            if let Some(&later) = rows.get(index + AHEAD) {
                let (slot, row) = place(later);
                prefetch_row(&content.planes[slot], content.row_types[slot], row, width);
            }
            let (slot, row) = place(rows[index]);
            if !T::join_row(&content.planes[slot], content.row_types[slot], row, out) {
                return Err(StoreError::BatchOverflow { element: T::NAME });
            }
        }
        Ok(())
    }
}

impl<T: BatchElement> State<T> {
    /// A piece of work that can be done now: gathering first, since the reader waits for it.
    fn next_task(&mut self, shared: &Shared<T>) -> Option<Task<T>> {
        self.open_batches(shared);
        self.open_blocks(shared);
        self.next_gather(shared.settings.batch).or_else(|| self.next_part())
    }

    fn open_batches(&mut self, shared: &Shared<T>) {
        let Settings { batch, prefetch, every, .. } = shared.settings;
        while self.batches.len() < prefetch {
            let data =
                self.free_batches.pop().unwrap_or_else(|| vec![T::default(); batch * shared.sources.width()]);
            self.batches.push_back(Batch { step: self.next_step, data: Some(data), filled: 0 });
            self.next_step += every;
        }
    }

    fn open_blocks(&mut self, shared: &Shared<T>) {
        let Settings { mixing_chunks, threads, .. } = shared.settings;
        // One block to gather from, and enough ahead that every thread has a chunk to decode.
        while self.blocks.len() < 1 + threads.div_ceil(mixing_chunks) {
            let (plan, wanted) = self.coming.next();
            self.blocks.push_back(Block {
                id: self.next_id,
                handed_out: 0,
                pending: plan.chunks.len() + 1,
                content: Content {
                    planes: plan.chunks.iter().map(|_| Planes::default()).collect(),
                    ..Content::default()
                },
                decoded: None,
                wanted,
                plan,
            });
            self.next_id += 1;
        }
    }

    fn next_gather(&mut self, size: usize) -> Option<Task<T>> {
        for batch in &mut self.batches {
            if batch.filled == size || batch.data.is_none() {
                continue;
            }
            let position = batch.step * size as u64 + batch.filled as u64;
            let block = self
                .blocks
                .iter()
                .find(|block| (block.plan.start..block.plan.start + block.plan.rows).contains(&position))?;
            let Some(content) = &block.decoded else { return None };
            let first = (position - block.plan.start) as usize;
            let rows = first..(block.plan.rows as usize).min(first + size - batch.filled);
            let data = batch.data.take()?;
            let (step, filled) = (batch.step, batch.filled);
            return Some(Task::Gather {
                step,
                data,
                filled,
                block: block.id,
                rows,
                content: content.clone(),
            });
        }
        None
    }

    fn next_part(&mut self) -> Option<Task<T>> {
        for block in &mut self.blocks {
            let part = block.handed_out;
            if part > block.plan.chunks.len() {
                continue;
            }
            block.handed_out += 1;
            return Some(match block.plan.chunks.get(part) {
                Some(&chunk) => {
                    if let Some(ahead) = &mut self.ahead {
                        ahead.advance(1);
                    }
                    let planes = self.free_planes.pop().unwrap_or_default();
                    Task::Decode { block: block.id, slot: part, chunk, planes }
                }
                None => Task::Permute { block: block.id, plan: block.plan.clone() },
            });
        }
        None
    }

    fn block(&mut self, id: u64) -> &mut Block {
        let block = self.blocks.iter_mut().find(|block| block.id == id);
        block.expect("a block stays while there is work on it")
    }

    fn finish_part(&mut self, block: u64, store: impl FnOnce(&mut Content)) {
        let block = self.block(block);
        store(&mut block.content);
        block.pending -= 1;
        if block.pending == 0 {
            block.decoded = Some(Arc::new(std::mem::take(&mut block.content)));
        }
        self.release_blocks();
    }

    fn finish_gather(&mut self, step: u64, block: u64, data: Vec<T>, rows: usize) {
        self.block(block).wanted -= rows as u64;
        let batch = self.batches.iter_mut().find(|batch| batch.step == step);
        let batch = batch.expect("a batch stays until it is full");
        batch.data = Some(data);
        batch.filled += rows;
        self.release_blocks();
    }

    /// Takes the buffers of the blocks of which every row that is wanted is gathered.
    fn release_blocks(&mut self) {
        while self.blocks.front().is_some_and(|block| block.pending == 0 && block.wanted == 0) {
            let content = self.blocks.pop_front().and_then(|block| block.decoded);
            if let Some(content) = content.and_then(Arc::into_inner) {
                self.free_planes.extend(content.planes);
            }
        }
    }
}
