//! KV prefixes: tensors that others read where they are.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use prefold::prefix::Dtype;
use prefold::{Error, KvPrefix};
use pyo3::prelude::*;
use pyo3::types::PyDict;

use crate::ending::released;
use crate::{dlpack, named, native};

/// See `prefold.Prefix`.
#[pyclass(frozen)]
pub struct Prefix(Arc<KvPrefix>);

impl Prefix {
    pub fn new(prefix: KvPrefix) -> Self {
        Prefix(Arc::new(prefix))
    }

    pub fn share(&self) -> Arc<KvPrefix> {
        self.0.clone()
    }
}

#[pymethods]
impl Prefix {
    /// Reads a file.
    #[staticmethod]
    fn open(py: Python<'_>, path: PathBuf) -> PyResult<Self> {
        let read = released(py, || KvPrefix::read(Path::new(&path)));
        read.map(|(prefix, _)| Prefix::new(prefix)).map_err(native)
    }

    /// Writes a file.
    fn save(&self, py: Python<'_>, path: PathBuf, dtype: &str) -> PyResult<()> {
        let dtype: Dtype = named("dtype", dtype, "f32, f16, bf16").map_err(native)?;
        released(py, || self.0.write(Path::new(&path), dtype)).map_err(native)
    }

    #[getter]
    fn layers(&self) -> usize {
        self.0.shape().layers
    }

    #[getter]
    fn kv_heads(&self) -> usize {
        self.0.shape().kv_heads
    }

    #[getter]
    fn tokens(&self) -> usize {
        self.0.shape().tokens
    }

    #[getter]
    fn head_dim(&self) -> usize {
        self.0.shape().head_dim
    }

    #[getter]
    fn next_pos(&self) -> usize {
        self.0.next_pos()
    }

    #[getter]
    fn content_id(&self, py: Python<'_>) -> String {
        released(py, || self.0.content_id())
    }

    /// Where it came from, as JSON.
    fn origin(&self) -> String {
        serde_json::to_string(self.0.origin()).unwrap_or_default()
    }

    /// K or V of a layer.
    fn tensor(&self, layer: usize, value: bool) -> PyResult<Tensor> {
        match self.0.layer(layer) {
            Some(_) => Ok(Tensor {
                prefix: self.0.clone(),
                layer,
                value,
            }),
            None => Err(native(Error::Input {
                what: format!("layer {layer}"),
                reason: format!(
                    "the prefix has {} layers, counted from 0",
                    self.0.shape().layers
                ),
            })),
        }
    }
}

/// K or V of a layer, which keeps its prefix alive.
#[pyclass(frozen)]
pub struct Tensor {
    prefix: Arc<KvPrefix>,
    layer: usize,
    value: bool,
}

impl Tensor {
    /// `[kv_heads, tokens, head_dim]`.
    pub fn shape(&self) -> [usize; 3] {
        let shape = self.prefix.shape();
        [shape.kv_heads, shape.tokens, shape.head_dim]
    }

    pub fn data(&self) -> &[f32] {
        let pair = self.prefix.layer(self.layer);
        pair.map_or(&[], |pair| &pair[usize::from(self.value)])
    }
}

#[pymethods]
impl Tensor {
    /// NumPy's array interface, version 3: a read-only view.
    #[getter]
    fn __array_interface__<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let [heads, tokens, width] = self.shape();
        let interface = PyDict::new(py);
        interface.set_item("version", 3)?;
        let element = if cfg!(target_endian = "big") {
            ">f4"
        } else {
            "<f4"
        };
        interface.set_item("typestr", element)?;
        interface.set_item("shape", (heads, tokens, width))?;
        interface.set_item("data", (self.data().as_ptr() as usize, true))?;
        Ok(interface)
    }

    /// The device of DLPack's protocol: CPU memory.
    fn __dlpack_device__(&self) -> (i32, i32) {
        (dlpack::CPU, 0)
    }

    /// A capsule of DLPack 1.0 or later, read-only and without a copy. Earlier versions cannot say that
    /// memory must not be written: they are refused.
    #[pyo3(signature = (*, stream=None, max_version=None, dl_device=None, copy=None))]
    fn __dlpack__(
        slf: Bound<'_, Self>,
        stream: Option<Py<PyAny>>,
        max_version: Option<(u32, u32)>,
        dl_device: Option<(i32, i32)>,
        copy: Option<bool>,
    ) -> PyResult<Py<PyAny>> {
        let _ = stream;
        let (data, shape) = (slf.get().data().as_ptr(), slf.get().shape());
        dlpack::capsule(slf.as_any(), data, shape, max_version, dl_device, copy)
    }
}
