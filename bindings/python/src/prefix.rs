//! KV prefixes: tensors that NumPy reads where they are.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use prefold::KvPrefix;
use prefold::prefix::Dtype;
use pyo3::prelude::*;
use pyo3::types::PyDict;

use crate::{NativeError, native};

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
        let read = py.detach(|| KvPrefix::load(Path::new(&path)));
        read.map(Prefix::new).map_err(native)
    }

    /// Writes a file.
    fn save(&self, py: Python<'_>, path: PathBuf, dtype: &str) -> PyResult<()> {
        let dtype: Dtype = dtype.parse().map_err(native)?;
        py.detach(|| self.0.save(Path::new(&path), dtype))
            .map_err(native)
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
    fn content_id(&self) -> String {
        self.0.content_id()
    }

    /// K or V of a layer.
    fn tensor(&self, layer: usize, value: bool) -> PyResult<Tensor> {
        let Some(_) = self.0.layer(layer) else {
            let message = format!(
                "layer {layer}: the prefix has {} layers, counted from 0",
                self.0.shape().layers
            );
            return Err(NativeError::new_err(("InputError", message)));
        };
        Ok(Tensor {
            prefix: self.0.clone(),
            layer,
            value,
        })
    }
}

/// K or V of a layer, which keeps its prefix alive.
#[pyclass(frozen)]
pub struct Tensor {
    prefix: Arc<KvPrefix>,
    layer: usize,
    value: bool,
}

#[pymethods]
impl Tensor {
    /// NumPy's array interface, version 3: a read-only view.
    #[getter]
    fn __array_interface__<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let shape = self.prefix.shape();
        let pair = self.prefix.layer(self.layer);
        let data = pair.map_or(&[][..], |pair| &pair[usize::from(self.value)]);
        let interface = PyDict::new(py);
        interface.set_item("version", 3)?;
        interface.set_item("typestr", if cfg!(target_endian = "big") { ">f4" } else { "<f4" })?;
        interface.set_item("shape", (shape.kv_heads, shape.tokens, shape.head_dim))?;
        interface.set_item("data", (data.as_ptr() as usize, true))?;
        Ok(interface)
    }
}
