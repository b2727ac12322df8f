//! Products by cublasLt, where the machine has it: f32 sums, and an algorithm chosen once per shape.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::ffi::c_void;
use std::hash::Hash;

use cudarc::cublaslt::{result, sys};

use super::Precision;
use super::launch::Product;
use crate::error::{Error, Result};

/// Bytes that an algorithm may use beside its operands; NVIDIA's advice for Hopper.
const WORKSPACE: usize = 32 << 20;
/// What every address must be a multiple of: the algorithms are chosen for it.
const ALIGNED: u64 = 256;
/// Shapes whose plans are kept for sure: those of a model at some fifty lengths of its input. A plan that is
/// gone costs its heuristic anew, some ten microseconds.
const PLANS: usize = 512;

/// cublasLt, or the knowledge that it is missing.
pub(super) struct Products(Option<Box<Library>>);

struct Library {
    handle: sys::cublasLtHandle_t,
    /// Its address, of so many bytes as [`WORKSPACE`].
    workspace: u64,
    /// Keeps the workspace.
    _memory: Box<dyn Send>,
    /// `None`: it has nothing for that shape.
    plans: Recent<Shape, Option<Plan>>,
}

// SAFETY: handles and descriptors may be used by any thread that has bound the context, one at a time.
unsafe impl Send for Library {}

/// What an algorithm depends on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Shape {
    rows: usize,
    columns: usize,
    inner: usize,
    x_ld: usize,
    w_ld: usize,
    bias: bool,
    precision: Precision,
}

/// A product as cublasLt describes it. It counts by columns: what is row-major to us is transposed to
/// it, and `y = x · wᵀ` is `yᵀ = w · xᵀ`.
struct Plan {
    operation: Operation,
    /// Of w, x and y.
    layouts: [Layout; 3],
    algorithm: sys::cublasLtMatmulAlgo_t,
    workspace: usize,
}

impl Products {
    /// Looks for the library. The context must be bound; `alloc` gives memory of so many bytes, and its address.
    pub(super) fn open(alloc: impl FnOnce(usize) -> Result<(u64, Box<dyn Send>)>) -> Self {
        // SAFETY: loads a library of the system and lets it go.
        if !unsafe { sys::is_culib_present() } {
            return Products(None);
        }
        let Ok((workspace, memory)) = alloc(WORKSPACE) else {
            return Products(None);
        };
        let library = result::create_handle().ok().map(|handle| Library {
            handle,
            workspace,
            _memory: memory,
            plans: Recent::new(PLANS),
        });
        Products(library.map(Box::new))
    }

    /// Queues a product; `None` where the library is missing or has nothing for it.
    ///
    /// # Safety
    ///
    /// As of [`Launcher::submit`](super::Launcher::submit); the stream is of the bound context.
    pub(super) unsafe fn queue(
        &mut self,
        product: &Product,
        stream: sys::cudaStream_t,
    ) -> Option<Result<()>> {
        let Library {
            handle,
            workspace,
            plans,
            ..
        } = self.0.as_deref_mut()?;
        let addresses = [product.x.at, product.w.at, product.y, product.bias];
        if !addresses.iter().all(|at| at.is_multiple_of(ALIGNED)) {
            return None;
        }
        let shape = Shape::of(product);
        let plan = plans.get(shape, || Plan::new(*handle, shape)).as_ref()?;
        if shape.bias && plan.operation.set_bias(product.bias).is_none() {
            return None;
        }
        let (one, beta) = (1.0f32, if product.add { 1.0f32 } else { 0.0 });
        let scalar = |value: &f32| std::ptr::from_ref(value).cast::<c_void>();
        let [w_layout, x_layout, y_layout] = &plan.layouts;
        let address = |at: u64| at as *const c_void;
        // SAFETY: descriptors live as long as the plan; the workspace is as large as it was said to be;
        // the rest is the caller's promise.
        let done = unsafe {
            result::matmul(
                *handle,
                plan.operation.0,
                scalar(&one),
                scalar(&beta),
                address(product.w.at),
                w_layout.0,
                address(product.x.at),
                x_layout.0,
                address(product.y),
                y_layout.0,
                address(product.y).cast_mut(),
                y_layout.0,
                &plan.algorithm,
                *workspace as *mut c_void,
                plan.workspace,
                stream,
            )
        };
        Some(done.map_err(|error| Error::Launch {
            kernel: "cublasLtMatmul",
            reason: format!("{shape:?}: {error}"),
        }))
    }
}

impl Drop for Library {
    fn drop(&mut self) {
        self.plans = Recent::new(0);
        // SAFETY: created by `open`, and not used after.
        let _ = unsafe { result::destroy_handle(self.handle) };
    }
}

/// The values of the keys that were asked for last: at least `size` of them, at most twice as many.
struct Recent<K, V> {
    size: usize,
    now: HashMap<K, V>,
    /// What `now` was when it was full.
    before: HashMap<K, V>,
}

impl<K: Eq + Hash, V> Recent<K, V> {
    fn new(size: usize) -> Self {
        Recent {
            size,
            now: HashMap::new(),
            before: HashMap::new(),
        }
    }

    fn get(&mut self, key: K, make: impl FnOnce() -> V) -> &mut V {
        if self.now.len() >= self.size && !self.now.contains_key(&key) {
            // What is not asked for until it is full again is forgotten then.
            let found = self.before.remove(&key);
            self.before = std::mem::take(&mut self.now);
            if let Some(value) = found {
                return self.now.entry(key).or_insert(value);
            }
        }
        match self.now.entry(key) {
            Entry::Occupied(held) => held.into_mut(),
            Entry::Vacant(free) => {
                let value = self.before.remove(free.key()).unwrap_or_else(make);
                free.insert(value)
            }
        }
    }
}

impl Shape {
    fn of(product: &Product) -> Self {
        Shape {
            rows: product.rows,
            columns: product.columns,
            inner: product.inner,
            x_ld: product.x.ld,
            w_ld: product.w.ld,
            bias: product.bias != 0,
            precision: product.precision,
        }
    }
}

impl Plan {
    /// The best that the library knows for the shape, if it knows any.
    fn new(handle: sys::cublasLtHandle_t, shape: Shape) -> Option<Self> {
        use sys::cublasLtMatmulDescAttributes_t as Attribute;
        let element = match shape.precision {
            Precision::Bf16 => sys::cudaDataType::CUDA_R_16BF,
            Precision::F32 => sys::cudaDataType::CUDA_R_32F,
        };
        let operation = Operation::new()?;
        // cublasOperation_t, which the binding does not name: 1 for transposed. The other is as it is.
        operation.set(Attribute::CUBLASLT_MATMUL_DESC_TRANSA, 1i32)?;
        if shape.bias {
            let epilogue = sys::cublasLtEpilogue_t::CUBLASLT_EPILOGUE_BIAS as u32;
            operation.set(Attribute::CUBLASLT_MATMUL_DESC_EPILOGUE, epilogue)?;
            // Any: the heuristic wants one.
            operation.set_bias(ALIGNED)?;
        }
        let layouts = [
            Layout::new(element, shape.inner, shape.columns, shape.w_ld)?,
            Layout::new(element, shape.inner, shape.rows, shape.x_ld)?,
            Layout::new(
                sys::cudaDataType::CUDA_R_32F,
                shape.columns,
                shape.rows,
                shape.columns,
            )?,
        ];
        let preference = Preference::new(WORKSPACE)?;
        // SAFETY: all were just created, and live.
        let found = unsafe {
            result::get_matmul_algo_heuristic(
                handle,
                operation.0,
                layouts[0].0,
                layouts[1].0,
                layouts[2].0,
                layouts[2].0,
                preference.0,
            )
        };
        let found = found.ok()?;
        Some(Plan {
            operation,
            layouts,
            algorithm: found.algo,
            workspace: found.workspaceSize,
        })
    }
}

struct Operation(sys::cublasLtMatmulDesc_t);

impl Operation {
    fn new() -> Option<Self> {
        let sums = sys::cublasComputeType_t::CUBLAS_COMPUTE_32F;
        let scale = sys::cudaDataType::CUDA_R_32F;
        result::create_matmul_desc(sums, scale).ok().map(Operation)
    }

    fn set<T: Copy>(&self, attribute: sys::cublasLtMatmulDescAttributes_t, value: T) -> Option<()> {
        let at = std::ptr::from_ref(&value).cast();
        // SAFETY: the descriptor lives, and copies so many bytes.
        unsafe { result::set_matmul_desc_attribute(self.0, attribute, at, size_of::<T>()) }.ok()
    }

    fn set_bias(&self, address: u64) -> Option<()> {
        let attribute = sys::cublasLtMatmulDescAttributes_t::CUBLASLT_MATMUL_DESC_BIAS_POINTER;
        self.set(attribute, address)
    }
}

impl Drop for Operation {
    fn drop(&mut self) {
        // SAFETY: created by `new`, and not used after.
        let _ = unsafe { result::destroy_matmul_desc(self.0) };
    }
}

struct Layout(sys::cublasLtMatrixLayout_t);

impl Layout {
    /// A matrix by columns.
    fn new(element: sys::cudaDataType, rows: usize, columns: usize, ld: usize) -> Option<Self> {
        result::create_matrix_layout(element, rows as u64, columns as u64, ld as i64)
            .ok()
            .map(Layout)
    }
}

impl Drop for Layout {
    fn drop(&mut self) {
        // SAFETY: created by `new`, and not used after.
        let _ = unsafe { result::destroy_matrix_layout(self.0) };
    }
}

struct Preference(sys::cublasLtMatmulPreference_t);

impl Preference {
    fn new(workspace: usize) -> Option<Self> {
        use sys::cublasLtMatmulPreferenceAttributes_t as Attribute;
        let preference = Preference(result::create_matmul_pref().ok()?);
        let attribute = Attribute::CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES;
        let at = std::ptr::from_ref(&workspace).cast();
        let bytes = size_of_val(&workspace);
        // SAFETY: the descriptor lives, and copies so many bytes.
        unsafe { result::set_matmul_pref_attribute(preference.0, attribute, at, bytes) }.ok()?;
        Some(preference)
    }
}

impl Drop for Preference {
    fn drop(&mut self) {
        // SAFETY: created by `new`, and not used after.
        let _ = unsafe { result::destroy_matmul_pref(self.0) };
    }
}

#[cfg(test)]
mod tests {
    use super::Recent;

    #[test]
    fn what_was_asked_for_last_is_kept() {
        let mut recent = Recent::new(4);
        let mut made = Vec::new();
        let mut ask = |key: u32| {
            let value = *recent.get(key, || {
                made.push(key);
                key * 10
            });
            assert_eq!(value, key * 10);
            assert!(recent.now.len() <= 4 && recent.before.len() <= 4);
        };
        // 1 is asked for again and again, and 100 others in between.
        for key in 2..102 {
            ask(1);
            ask(key);
        }
        // The last four are there; the first are not.
        for key in [98, 99, 100, 101, 1, 2] {
            ask(key);
        }
        let mut want: Vec<u32> = (1..102).collect();
        want.push(2);
        assert_eq!(made, want);
    }
}
