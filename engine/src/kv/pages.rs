//! The memory of the KV pages: fixed in number and size, each in the canonical order of a block payload.
//!
//! A page holds layer, then KV head, then keys and values, then token, then dimension, so a stored block is one
//! copy of a page and a loaded one becomes a page as it is. A page that is full never changes again; it can be
//! lent out for writing back ([`Pages::lend`]) while the model reads it. A page that is being loaded leaves
//! its place ([`Pages::take_out`]) and comes back when its bytes have landed.

use std::sync::Arc;

use crate::checkpoint::ModelConfig;

/// Place of a page.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PageId(pub(crate) u32);

/// Shape of a page.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PageShape {
    /// Tokens of a page. A multiple of 16.
    pub tokens: usize,
    layers: usize,
    kv_heads: usize,
    head_dim: usize,
}

impl PageShape {
    /// Pages of `tokens` tokens for a model.
    pub fn new(config: &ModelConfig, tokens: usize) -> Self {
        assert!(tokens > 0 && tokens.is_multiple_of(crate::model::KEYS), "pages hold whole groups of keys");
        Self { tokens, layers: config.layers, kv_heads: config.kv_heads, head_dim: config.head_dim }
    }

    /// Elements of a page.
    pub fn elements(&self) -> usize {
        self.layers * self.kv_heads * 2 * self.tokens * self.head_dim
    }

    /// Bytes of a page, which are those of a block payload.
    pub fn bytes(&self) -> usize {
        self.elements() * size_of::<f32>()
    }

    /// Elements of the keys (or values) of one head in one layer.
    fn panel(&self) -> usize {
        self.tokens * self.head_dim
    }

    fn head_at(&self, layer: usize, head: usize) -> usize {
        (layer * self.kv_heads + head) * 2 * self.panel()
    }
}

/// The bytes of one page. Little-endian `f32` when seen as bytes, like a block payload.
#[derive(Debug)]
pub struct PageBuffer(Vec<f32>);

impl PageBuffer {
    /// The payload.
    pub fn bytes(&self) -> &[u8] {
        bytemuck::cast_slice(&self.0)
    }

    /// The payload, to be overwritten.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        bytemuck::cast_slice_mut(&mut self.0)
    }
}

// `PageBuffer` is seen as bytes.
#[cfg(target_endian = "big")]
compile_error!("a block payload is little-endian; a big-endian machine would have to swap");

/// All pages of an engine.
#[derive(Debug)]
pub struct Pages {
    shape: PageShape,
    /// `None` while a page is out for loading.
    buffers: Vec<Option<Arc<PageBuffer>>>,
}

impl Pages {
    /// Takes the memory of `count` pages. The system backs it when it is first touched.
    pub fn new(shape: PageShape, count: usize) -> Self {
        let buffer = || Some(Arc::new(PageBuffer(vec![0.0; shape.elements()])));
        Self { shape, buffers: std::iter::repeat_with(buffer).take(count).collect() }
    }

    /// Shape of each page.
    pub fn shape(&self) -> &PageShape {
        &self.shape
    }

    /// Tokens of a page.
    pub fn page_tokens(&self) -> usize {
        self.shape.tokens
    }

    /// Number of pages.
    pub fn count(&self) -> usize {
        self.buffers.len()
    }

    /// Keys and values of one head in one layer, each (token, dimension).
    pub(crate) fn head(&self, page: PageId, layer: usize, head: usize) -> (&[f32], &[f32]) {
        let buffer = self.buffers[page.0 as usize].as_ref().expect("a page in use is in its place");
        let (at, panel) = (self.shape.head_at(layer, head), self.shape.panel());
        buffer.0[at..at + 2 * panel].split_at(panel)
    }

    /// Writes the key and value of one token in one head and layer.
    pub(crate) fn write_token(
        &mut self,
        page: PageId,
        (layer, head, token): (usize, usize, usize),
        key: &[f32],
        value: &[f32],
    ) {
        let dim = self.shape.head_dim;
        let at = self.shape.head_at(layer, head) + token * dim;
        let panel = self.shape.panel();
        let buffer = &mut self.buffer_mut(page).0;
        buffer[at..at + dim].copy_from_slice(key);
        buffer[at + panel..at + panel + dim].copy_from_slice(value);
    }

    /// A second owner of a full page, for reading. The page must not be written until it is dropped.
    pub(crate) fn lend(&self, page: PageId) -> Arc<PageBuffer> {
        Arc::clone(self.buffers[page.0 as usize].as_ref().expect("a page in use is in its place"))
    }

    /// Takes a page's bytes away to be overwritten elsewhere.
    pub(crate) fn take_out(&mut self, page: PageId) -> PageBuffer {
        let buffer = self.buffers[page.0 as usize].take().expect("a page in use is in its place");
        Arc::into_inner(buffer).expect("a page to be loaded has one owner")
    }

    /// Brings the bytes of a page back.
    pub(crate) fn put_back(&mut self, page: PageId, buffer: PageBuffer) {
        assert_eq!(buffer.0.len(), self.shape.elements(), "a page keeps its size");
        let place = &mut self.buffers[page.0 as usize];
        assert!(place.is_none(), "a page comes back to its own place");
        *place = Some(Arc::new(buffer));
    }

    /// The payload of a page.
    pub fn payload(&self, page: PageId) -> &[u8] {
        self.buffers[page.0 as usize].as_ref().expect("a page in use is in its place").bytes()
    }

    fn buffer_mut(&mut self, page: PageId) -> &mut PageBuffer {
        let buffer = self.buffers[page.0 as usize].as_mut().expect("a page in use is in its place");
        Arc::get_mut(buffer).expect("a page that is written has one owner")
    }
}
