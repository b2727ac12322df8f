//! Mirror of kernels/abi.h, which says what the fields are. Made by `make abi`; not to be edited.
#![allow(missing_docs, dead_code)]

pub const TILE_BF16: u32 = 128;
pub const TILE_F32: u32 = 64;
pub const TILE_K_BF16: u32 = 32;
pub const TILE_K_F32: u32 = 16;
pub const TILE_STAGES: u32 = 3;
pub const TILE_THREADS_BF16: u32 = 128;
pub const TILE_THREADS_F32: u32 = 256;
pub const TILE_PITCH_F32: u32 = 20;
pub const NLL90_ROWS: u32 = 128;
pub const NLL90_IDS: u32 = 256;
pub const NLL90_K: u32 = 64;
pub const NLL90_STAGES: u32 = 4;
pub const NLL90_THREADS: u32 = 384;
pub const NLL90_CLUSTER: u32 = 2;
pub const NLL90_SHARED: u32 = 196680;
pub const NOWHERE: u32 = 4294967295;
pub const LORA_SPANS: u32 = 3;
pub const LORA_ROWS: u32 = 32;
pub const LORA_TILE: u32 = 128;
pub const LORA_STEP_BF16: u32 = 64;
pub const LORA_STEP_F32: u32 = 32;
pub const LORA_STAGES: u32 = 3;
pub const LORA_THREADS: u32 = 128;
pub const LORA_X_PITCH_BF16: u32 = 72;
pub const LORA_X_PITCH_F32: u32 = 36;
pub const LORA_PITCH_BF16: u32 = 64;
pub const LORA_PITCH_F32: u32 = 36;
pub const LORA_WIDE: u32 = 64;
pub const LORA_NARROW_PITCH: u32 = 132;
pub const LORA_WIDE_PITCH: u32 = 68;
#[repr(C)]
#[derive(Debug, Default, Copy, Clone, bytemuck :: Pod, bytemuck :: Zeroable)]
pub struct PackParams {
    pub x: u64,
    pub index: u64,
    pub out: u64,
    pub rows: u32,
    pub width: u32,
    pub ld: u32,
    pub stride: u32,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of PackParams"][::std::mem::size_of::<PackParams>() - 40usize];
    ["Alignment of PackParams"][::std::mem::align_of::<PackParams>() - 8usize];
    ["Offset of field: PackParams::x"][::std::mem::offset_of!(PackParams, x) - 0usize];
    ["Offset of field: PackParams::index"][::std::mem::offset_of!(PackParams, index) - 8usize];
    ["Offset of field: PackParams::out"][::std::mem::offset_of!(PackParams, out) - 16usize];
    ["Offset of field: PackParams::rows"][::std::mem::offset_of!(PackParams, rows) - 24usize];
    ["Offset of field: PackParams::width"][::std::mem::offset_of!(PackParams, width) - 28usize];
    ["Offset of field: PackParams::ld"][::std::mem::offset_of!(PackParams, ld) - 32usize];
    ["Offset of field: PackParams::stride"][::std::mem::offset_of!(PackParams, stride) - 36usize];
};
#[repr(C)]
#[derive(Debug, Default, Copy, Clone, bytemuck :: Pod, bytemuck :: Zeroable)]
pub struct TransposeParams {
    pub x: u64,
    pub out: u64,
    pub rows: u32,
    pub columns: u32,
    pub ld: u32,
    pub stride: u32,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of TransposeParams"][::std::mem::size_of::<TransposeParams>() - 32usize];
    ["Alignment of TransposeParams"][::std::mem::align_of::<TransposeParams>() - 8usize];
    ["Offset of field: TransposeParams::x"][::std::mem::offset_of!(TransposeParams, x) - 0usize];
    ["Offset of field: TransposeParams::out"]
        [::std::mem::offset_of!(TransposeParams, out) - 8usize];
    ["Offset of field: TransposeParams::rows"]
        [::std::mem::offset_of!(TransposeParams, rows) - 16usize];
    ["Offset of field: TransposeParams::columns"]
        [::std::mem::offset_of!(TransposeParams, columns) - 20usize];
    ["Offset of field: TransposeParams::ld"][::std::mem::offset_of!(TransposeParams, ld) - 24usize];
    ["Offset of field: TransposeParams::stride"]
        [::std::mem::offset_of!(TransposeParams, stride) - 28usize];
};
#[repr(C)]
#[derive(Debug, Default, Copy, Clone, bytemuck :: Pod, bytemuck :: Zeroable)]
pub struct GemmParams {
    pub x: u64,
    pub w: u64,
    pub bias: u64,
    pub y: u64,
    pub rows: u32,
    pub outputs: u32,
    pub inner: u32,
    pub x_ld: u32,
    pub w_ld: u32,
    pub add: u32,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of GemmParams"][::std::mem::size_of::<GemmParams>() - 56usize];
    ["Alignment of GemmParams"][::std::mem::align_of::<GemmParams>() - 8usize];
    ["Offset of field: GemmParams::x"][::std::mem::offset_of!(GemmParams, x) - 0usize];
    ["Offset of field: GemmParams::w"][::std::mem::offset_of!(GemmParams, w) - 8usize];
    ["Offset of field: GemmParams::bias"][::std::mem::offset_of!(GemmParams, bias) - 16usize];
    ["Offset of field: GemmParams::y"][::std::mem::offset_of!(GemmParams, y) - 24usize];
    ["Offset of field: GemmParams::rows"][::std::mem::offset_of!(GemmParams, rows) - 32usize];
    ["Offset of field: GemmParams::outputs"][::std::mem::offset_of!(GemmParams, outputs) - 36usize];
    ["Offset of field: GemmParams::inner"][::std::mem::offset_of!(GemmParams, inner) - 40usize];
    ["Offset of field: GemmParams::x_ld"][::std::mem::offset_of!(GemmParams, x_ld) - 44usize];
    ["Offset of field: GemmParams::w_ld"][::std::mem::offset_of!(GemmParams, w_ld) - 48usize];
    ["Offset of field: GemmParams::add"][::std::mem::offset_of!(GemmParams, add) - 52usize];
};
#[repr(C)]
#[derive(Debug, Default, Copy, Clone, bytemuck :: Pod, bytemuck :: Zeroable)]
pub struct NllPart {
    pub max: f32,
    pub sum: f32,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of NllPart"][::std::mem::size_of::<NllPart>() - 8usize];
    ["Alignment of NllPart"][::std::mem::align_of::<NllPart>() - 4usize];
    ["Offset of field: NllPart::max"][::std::mem::offset_of!(NllPart, max) - 0usize];
    ["Offset of field: NllPart::sum"][::std::mem::offset_of!(NllPart, sum) - 4usize];
};
#[repr(C)]
#[derive(Debug, Default, Copy, Clone, bytemuck :: Pod, bytemuck :: Zeroable)]
pub struct NllParams {
    pub x: u64,
    pub w: u64,
    pub target: u64,
    pub parts: u64,
    pub logit: u64,
    pub rows: u32,
    pub vocab: u32,
    pub ld: u32,
    pub splits: u32,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of NllParams"][::std::mem::size_of::<NllParams>() - 56usize];
    ["Alignment of NllParams"][::std::mem::align_of::<NllParams>() - 8usize];
    ["Offset of field: NllParams::x"][::std::mem::offset_of!(NllParams, x) - 0usize];
    ["Offset of field: NllParams::w"][::std::mem::offset_of!(NllParams, w) - 8usize];
    ["Offset of field: NllParams::target"][::std::mem::offset_of!(NllParams, target) - 16usize];
    ["Offset of field: NllParams::parts"][::std::mem::offset_of!(NllParams, parts) - 24usize];
    ["Offset of field: NllParams::logit"][::std::mem::offset_of!(NllParams, logit) - 32usize];
    ["Offset of field: NllParams::rows"][::std::mem::offset_of!(NllParams, rows) - 40usize];
    ["Offset of field: NllParams::vocab"][::std::mem::offset_of!(NllParams, vocab) - 44usize];
    ["Offset of field: NllParams::ld"][::std::mem::offset_of!(NllParams, ld) - 48usize];
    ["Offset of field: NllParams::splits"][::std::mem::offset_of!(NllParams, splits) - 52usize];
};
#[repr(C)]
#[derive(Debug, Default, Copy, Clone, bytemuck :: Pod, bytemuck :: Zeroable)]
pub struct TensorMap {
    pub words: [u64; 16usize],
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of TensorMap"][::std::mem::size_of::<TensorMap>() - 128usize];
    ["Alignment of TensorMap"][::std::mem::align_of::<TensorMap>() - 8usize];
    ["Offset of field: TensorMap::words"][::std::mem::offset_of!(TensorMap, words) - 0usize];
};
#[repr(C)]
#[derive(Debug, Default, Copy, Clone, bytemuck :: Pod, bytemuck :: Zeroable)]
pub struct Nll90Params {
    pub x: TensorMap,
    pub w: TensorMap,
    pub target: u64,
    pub parts: u64,
    pub logit: u64,
    pub rows: u32,
    pub vocab: u32,
    pub ld: u32,
    pub share: u32,
    pub unused: [u32; 6usize],
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of Nll90Params"][::std::mem::size_of::<Nll90Params>() - 320usize];
    ["Alignment of Nll90Params"][::std::mem::align_of::<Nll90Params>() - 8usize];
    ["Offset of field: Nll90Params::x"][::std::mem::offset_of!(Nll90Params, x) - 0usize];
    ["Offset of field: Nll90Params::w"][::std::mem::offset_of!(Nll90Params, w) - 128usize];
    ["Offset of field: Nll90Params::target"]
        [::std::mem::offset_of!(Nll90Params, target) - 256usize];
    ["Offset of field: Nll90Params::parts"][::std::mem::offset_of!(Nll90Params, parts) - 264usize];
    ["Offset of field: Nll90Params::logit"][::std::mem::offset_of!(Nll90Params, logit) - 272usize];
    ["Offset of field: Nll90Params::rows"][::std::mem::offset_of!(Nll90Params, rows) - 280usize];
    ["Offset of field: Nll90Params::vocab"][::std::mem::offset_of!(Nll90Params, vocab) - 284usize];
    ["Offset of field: Nll90Params::ld"][::std::mem::offset_of!(Nll90Params, ld) - 288usize];
    ["Offset of field: Nll90Params::share"][::std::mem::offset_of!(Nll90Params, share) - 292usize];
    ["Offset of field: Nll90Params::unused"]
        [::std::mem::offset_of!(Nll90Params, unused) - 296usize];
};
#[repr(C)]
#[derive(Debug, Default, Copy, Clone, bytemuck :: Pod, bytemuck :: Zeroable)]
pub struct NllLogitsParams {
    pub logits: u64,
    pub target: u64,
    pub parts: u64,
    pub logit: u64,
    pub rows: u32,
    pub vocab: u32,
    pub ld: u32,
    pub splits: u32,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of NllLogitsParams"][::std::mem::size_of::<NllLogitsParams>() - 48usize];
    ["Alignment of NllLogitsParams"][::std::mem::align_of::<NllLogitsParams>() - 8usize];
    ["Offset of field: NllLogitsParams::logits"]
        [::std::mem::offset_of!(NllLogitsParams, logits) - 0usize];
    ["Offset of field: NllLogitsParams::target"]
        [::std::mem::offset_of!(NllLogitsParams, target) - 8usize];
    ["Offset of field: NllLogitsParams::parts"]
        [::std::mem::offset_of!(NllLogitsParams, parts) - 16usize];
    ["Offset of field: NllLogitsParams::logit"]
        [::std::mem::offset_of!(NllLogitsParams, logit) - 24usize];
    ["Offset of field: NllLogitsParams::rows"]
        [::std::mem::offset_of!(NllLogitsParams, rows) - 32usize];
    ["Offset of field: NllLogitsParams::vocab"]
        [::std::mem::offset_of!(NllLogitsParams, vocab) - 36usize];
    ["Offset of field: NllLogitsParams::ld"][::std::mem::offset_of!(NllLogitsParams, ld) - 40usize];
    ["Offset of field: NllLogitsParams::splits"]
        [::std::mem::offset_of!(NllLogitsParams, splits) - 44usize];
};
#[repr(C)]
#[derive(Debug, Default, Copy, Clone, bytemuck :: Pod, bytemuck :: Zeroable)]
pub struct NllMergeParams {
    pub parts: u64,
    pub logit: u64,
    pub out: u64,
    pub lse: u64,
    pub rows: u32,
    pub splits: u32,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of NllMergeParams"][::std::mem::size_of::<NllMergeParams>() - 40usize];
    ["Alignment of NllMergeParams"][::std::mem::align_of::<NllMergeParams>() - 8usize];
    ["Offset of field: NllMergeParams::parts"]
        [::std::mem::offset_of!(NllMergeParams, parts) - 0usize];
    ["Offset of field: NllMergeParams::logit"]
        [::std::mem::offset_of!(NllMergeParams, logit) - 8usize];
    ["Offset of field: NllMergeParams::out"][::std::mem::offset_of!(NllMergeParams, out) - 16usize];
    ["Offset of field: NllMergeParams::lse"][::std::mem::offset_of!(NllMergeParams, lse) - 24usize];
    ["Offset of field: NllMergeParams::rows"]
        [::std::mem::offset_of!(NllMergeParams, rows) - 32usize];
    ["Offset of field: NllMergeParams::splits"]
        [::std::mem::offset_of!(NllMergeParams, splits) - 36usize];
};
#[repr(C)]
#[derive(Debug, Default, Copy, Clone, bytemuck :: Pod, bytemuck :: Zeroable)]
pub struct NllBwdParams {
    pub x: u64,
    pub w: u64,
    pub target: u64,
    pub lse: u64,
    pub out: u64,
    pub rows: u32,
    pub vocab: u32,
    pub ld: u32,
    pub first: u32,
    pub count: u32,
    pub out_ld: u32,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of NllBwdParams"][::std::mem::size_of::<NllBwdParams>() - 64usize];
    ["Alignment of NllBwdParams"][::std::mem::align_of::<NllBwdParams>() - 8usize];
    ["Offset of field: NllBwdParams::x"][::std::mem::offset_of!(NllBwdParams, x) - 0usize];
    ["Offset of field: NllBwdParams::w"][::std::mem::offset_of!(NllBwdParams, w) - 8usize];
    ["Offset of field: NllBwdParams::target"]
        [::std::mem::offset_of!(NllBwdParams, target) - 16usize];
    ["Offset of field: NllBwdParams::lse"][::std::mem::offset_of!(NllBwdParams, lse) - 24usize];
    ["Offset of field: NllBwdParams::out"][::std::mem::offset_of!(NllBwdParams, out) - 32usize];
    ["Offset of field: NllBwdParams::rows"][::std::mem::offset_of!(NllBwdParams, rows) - 40usize];
    ["Offset of field: NllBwdParams::vocab"][::std::mem::offset_of!(NllBwdParams, vocab) - 44usize];
    ["Offset of field: NllBwdParams::ld"][::std::mem::offset_of!(NllBwdParams, ld) - 48usize];
    ["Offset of field: NllBwdParams::first"][::std::mem::offset_of!(NllBwdParams, first) - 52usize];
    ["Offset of field: NllBwdParams::count"][::std::mem::offset_of!(NllBwdParams, count) - 56usize];
    ["Offset of field: NllBwdParams::out_ld"]
        [::std::mem::offset_of!(NllBwdParams, out_ld) - 60usize];
};
#[repr(C)]
#[derive(Debug, Default, Copy, Clone, bytemuck :: Pod, bytemuck :: Zeroable)]
pub struct RowSum {
    pub to: u32,
    pub first: u32,
    pub count: u32,
    pub unused: u32,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of RowSum"][::std::mem::size_of::<RowSum>() - 16usize];
    ["Alignment of RowSum"][::std::mem::align_of::<RowSum>() - 4usize];
    ["Offset of field: RowSum::to"][::std::mem::offset_of!(RowSum, to) - 0usize];
    ["Offset of field: RowSum::first"][::std::mem::offset_of!(RowSum, first) - 4usize];
    ["Offset of field: RowSum::count"][::std::mem::offset_of!(RowSum, count) - 8usize];
    ["Offset of field: RowSum::unused"][::std::mem::offset_of!(RowSum, unused) - 12usize];
};
#[repr(C)]
#[derive(Debug, Default, Copy, Clone, bytemuck :: Pod, bytemuck :: Zeroable)]
pub struct ScatterParams {
    pub x: u64,
    pub sums: u64,
    pub order: u64,
    pub out: u64,
    pub width: u32,
    pub unused: u32,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of ScatterParams"][::std::mem::size_of::<ScatterParams>() - 40usize];
    ["Alignment of ScatterParams"][::std::mem::align_of::<ScatterParams>() - 8usize];
    ["Offset of field: ScatterParams::x"][::std::mem::offset_of!(ScatterParams, x) - 0usize];
    ["Offset of field: ScatterParams::sums"][::std::mem::offset_of!(ScatterParams, sums) - 8usize];
    ["Offset of field: ScatterParams::order"]
        [::std::mem::offset_of!(ScatterParams, order) - 16usize];
    ["Offset of field: ScatterParams::out"][::std::mem::offset_of!(ScatterParams, out) - 24usize];
    ["Offset of field: ScatterParams::width"]
        [::std::mem::offset_of!(ScatterParams, width) - 32usize];
    ["Offset of field: ScatterParams::unused"]
        [::std::mem::offset_of!(ScatterParams, unused) - 36usize];
};
#[repr(C)]
#[derive(Debug, Default, Copy, Clone, bytemuck :: Pod, bytemuck :: Zeroable)]
pub struct Segment {
    pub first: u32,
    pub len: u32,
    pub count: u32,
    pub quantile: f32,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of Segment"][::std::mem::size_of::<Segment>() - 16usize];
    ["Alignment of Segment"][::std::mem::align_of::<Segment>() - 4usize];
    ["Offset of field: Segment::first"][::std::mem::offset_of!(Segment, first) - 0usize];
    ["Offset of field: Segment::len"][::std::mem::offset_of!(Segment, len) - 4usize];
    ["Offset of field: Segment::count"][::std::mem::offset_of!(Segment, count) - 8usize];
    ["Offset of field: Segment::quantile"][::std::mem::offset_of!(Segment, quantile) - 12usize];
};
#[repr(C)]
#[derive(Debug, Default, Copy, Clone, bytemuck :: Pod, bytemuck :: Zeroable)]
pub struct TopkParams {
    pub scores: u64,
    pub ids: u64,
    pub segments: u64,
    pub mask: u64,
    pub kept_ids: u64,
    pub kept_rows: u64,
    pub kept: u64,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of TopkParams"][::std::mem::size_of::<TopkParams>() - 56usize];
    ["Alignment of TopkParams"][::std::mem::align_of::<TopkParams>() - 8usize];
    ["Offset of field: TopkParams::scores"][::std::mem::offset_of!(TopkParams, scores) - 0usize];
    ["Offset of field: TopkParams::ids"][::std::mem::offset_of!(TopkParams, ids) - 8usize];
    ["Offset of field: TopkParams::segments"]
        [::std::mem::offset_of!(TopkParams, segments) - 16usize];
    ["Offset of field: TopkParams::mask"][::std::mem::offset_of!(TopkParams, mask) - 24usize];
    ["Offset of field: TopkParams::kept_ids"]
        [::std::mem::offset_of!(TopkParams, kept_ids) - 32usize];
    ["Offset of field: TopkParams::kept_rows"]
        [::std::mem::offset_of!(TopkParams, kept_rows) - 40usize];
    ["Offset of field: TopkParams::kept"][::std::mem::offset_of!(TopkParams, kept) - 48usize];
};
#[repr(C)]
#[derive(Debug, Default, Copy, Clone, bytemuck :: Pod, bytemuck :: Zeroable)]
pub struct GatherParams {
    pub x: u64,
    pub rows: u64,
    pub count: u64,
    pub out: u64,
    pub width: u32,
    pub to: u32,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of GatherParams"][::std::mem::size_of::<GatherParams>() - 40usize];
    ["Alignment of GatherParams"][::std::mem::align_of::<GatherParams>() - 8usize];
    ["Offset of field: GatherParams::x"][::std::mem::offset_of!(GatherParams, x) - 0usize];
    ["Offset of field: GatherParams::rows"][::std::mem::offset_of!(GatherParams, rows) - 8usize];
    ["Offset of field: GatherParams::count"][::std::mem::offset_of!(GatherParams, count) - 16usize];
    ["Offset of field: GatherParams::out"][::std::mem::offset_of!(GatherParams, out) - 24usize];
    ["Offset of field: GatherParams::width"][::std::mem::offset_of!(GatherParams, width) - 32usize];
    ["Offset of field: GatherParams::to"][::std::mem::offset_of!(GatherParams, to) - 36usize];
};
#[repr(C)]
#[derive(Debug, Default, Copy, Clone, bytemuck :: Pod, bytemuck :: Zeroable)]
pub struct EmbedParams {
    pub ids: u64,
    pub table: u64,
    pub out: u64,
    pub rows: u32,
    pub width: u32,
    pub ld: u32,
    pub add: u32,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of EmbedParams"][::std::mem::size_of::<EmbedParams>() - 40usize];
    ["Alignment of EmbedParams"][::std::mem::align_of::<EmbedParams>() - 8usize];
    ["Offset of field: EmbedParams::ids"][::std::mem::offset_of!(EmbedParams, ids) - 0usize];
    ["Offset of field: EmbedParams::table"][::std::mem::offset_of!(EmbedParams, table) - 8usize];
    ["Offset of field: EmbedParams::out"][::std::mem::offset_of!(EmbedParams, out) - 16usize];
    ["Offset of field: EmbedParams::rows"][::std::mem::offset_of!(EmbedParams, rows) - 24usize];
    ["Offset of field: EmbedParams::width"][::std::mem::offset_of!(EmbedParams, width) - 28usize];
    ["Offset of field: EmbedParams::ld"][::std::mem::offset_of!(EmbedParams, ld) - 32usize];
    ["Offset of field: EmbedParams::add"][::std::mem::offset_of!(EmbedParams, add) - 36usize];
};
#[repr(C)]
#[derive(Debug, Default, Copy, Clone, bytemuck :: Pod, bytemuck :: Zeroable)]
pub struct NormParams {
    pub x: u64,
    pub weight: u64,
    pub bias: u64,
    pub y: u64,
    pub packed: u64,
    pub rows: u32,
    pub width: u32,
    pub layer: u32,
    pub eps: f32,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of NormParams"][::std::mem::size_of::<NormParams>() - 56usize];
    ["Alignment of NormParams"][::std::mem::align_of::<NormParams>() - 8usize];
    ["Offset of field: NormParams::x"][::std::mem::offset_of!(NormParams, x) - 0usize];
    ["Offset of field: NormParams::weight"][::std::mem::offset_of!(NormParams, weight) - 8usize];
    ["Offset of field: NormParams::bias"][::std::mem::offset_of!(NormParams, bias) - 16usize];
    ["Offset of field: NormParams::y"][::std::mem::offset_of!(NormParams, y) - 24usize];
    ["Offset of field: NormParams::packed"][::std::mem::offset_of!(NormParams, packed) - 32usize];
    ["Offset of field: NormParams::rows"][::std::mem::offset_of!(NormParams, rows) - 40usize];
    ["Offset of field: NormParams::width"][::std::mem::offset_of!(NormParams, width) - 44usize];
    ["Offset of field: NormParams::layer"][::std::mem::offset_of!(NormParams, layer) - 48usize];
    ["Offset of field: NormParams::eps"][::std::mem::offset_of!(NormParams, eps) - 52usize];
};
#[repr(C)]
#[derive(Debug, Default, Copy, Clone, bytemuck :: Pod, bytemuck :: Zeroable)]
pub struct RotateParams {
    pub qkv: u64,
    pub q_norm: u64,
    pub k_norm: u64,
    pub angles: u64,
    pub k: u64,
    pub v: u64,
    pub places: u64,
    pub rows: u32,
    pub heads: u32,
    pub kv_heads: u32,
    pub head_dim: u32,
    pub at: u32,
    pub eps: f32,
    pub interleaved: u32,
    pub unused: u32,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of RotateParams"][::std::mem::size_of::<RotateParams>() - 88usize];
    ["Alignment of RotateParams"][::std::mem::align_of::<RotateParams>() - 8usize];
    ["Offset of field: RotateParams::qkv"][::std::mem::offset_of!(RotateParams, qkv) - 0usize];
    ["Offset of field: RotateParams::q_norm"]
        [::std::mem::offset_of!(RotateParams, q_norm) - 8usize];
    ["Offset of field: RotateParams::k_norm"]
        [::std::mem::offset_of!(RotateParams, k_norm) - 16usize];
    ["Offset of field: RotateParams::angles"]
        [::std::mem::offset_of!(RotateParams, angles) - 24usize];
    ["Offset of field: RotateParams::k"][::std::mem::offset_of!(RotateParams, k) - 32usize];
    ["Offset of field: RotateParams::v"][::std::mem::offset_of!(RotateParams, v) - 40usize];
    ["Offset of field: RotateParams::places"]
        [::std::mem::offset_of!(RotateParams, places) - 48usize];
    ["Offset of field: RotateParams::rows"][::std::mem::offset_of!(RotateParams, rows) - 56usize];
    ["Offset of field: RotateParams::heads"][::std::mem::offset_of!(RotateParams, heads) - 60usize];
    ["Offset of field: RotateParams::kv_heads"]
        [::std::mem::offset_of!(RotateParams, kv_heads) - 64usize];
    ["Offset of field: RotateParams::head_dim"]
        [::std::mem::offset_of!(RotateParams, head_dim) - 68usize];
    ["Offset of field: RotateParams::at"][::std::mem::offset_of!(RotateParams, at) - 72usize];
    ["Offset of field: RotateParams::eps"][::std::mem::offset_of!(RotateParams, eps) - 76usize];
    ["Offset of field: RotateParams::interleaved"]
        [::std::mem::offset_of!(RotateParams, interleaved) - 80usize];
    ["Offset of field: RotateParams::unused"]
        [::std::mem::offset_of!(RotateParams, unused) - 84usize];
};
#[repr(C)]
#[derive(Debug, Default, Copy, Clone, bytemuck :: Pod, bytemuck :: Zeroable)]
pub struct ActivateParams {
    pub x: u64,
    pub y: u64,
    pub packed: u64,
    pub rows: u32,
    pub width: u32,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of ActivateParams"][::std::mem::size_of::<ActivateParams>() - 32usize];
    ["Alignment of ActivateParams"][::std::mem::align_of::<ActivateParams>() - 8usize];
    ["Offset of field: ActivateParams::x"][::std::mem::offset_of!(ActivateParams, x) - 0usize];
    ["Offset of field: ActivateParams::y"][::std::mem::offset_of!(ActivateParams, y) - 8usize];
    ["Offset of field: ActivateParams::packed"]
        [::std::mem::offset_of!(ActivateParams, packed) - 16usize];
    ["Offset of field: ActivateParams::rows"]
        [::std::mem::offset_of!(ActivateParams, rows) - 24usize];
    ["Offset of field: ActivateParams::width"]
        [::std::mem::offset_of!(ActivateParams, width) - 28usize];
};
#[repr(C)]
#[derive(Debug, Default, Copy, Clone, bytemuck :: Pod, bytemuck :: Zeroable)]
pub struct NormBwdParams {
    pub x: u64,
    pub weight: u64,
    pub dy: u64,
    pub dx: u64,
    pub width: u32,
    pub layer: u32,
    pub eps: f32,
    pub unused: u32,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of NormBwdParams"][::std::mem::size_of::<NormBwdParams>() - 48usize];
    ["Alignment of NormBwdParams"][::std::mem::align_of::<NormBwdParams>() - 8usize];
    ["Offset of field: NormBwdParams::x"][::std::mem::offset_of!(NormBwdParams, x) - 0usize];
    ["Offset of field: NormBwdParams::weight"]
        [::std::mem::offset_of!(NormBwdParams, weight) - 8usize];
    ["Offset of field: NormBwdParams::dy"][::std::mem::offset_of!(NormBwdParams, dy) - 16usize];
    ["Offset of field: NormBwdParams::dx"][::std::mem::offset_of!(NormBwdParams, dx) - 24usize];
    ["Offset of field: NormBwdParams::width"]
        [::std::mem::offset_of!(NormBwdParams, width) - 32usize];
    ["Offset of field: NormBwdParams::layer"]
        [::std::mem::offset_of!(NormBwdParams, layer) - 36usize];
    ["Offset of field: NormBwdParams::eps"][::std::mem::offset_of!(NormBwdParams, eps) - 40usize];
    ["Offset of field: NormBwdParams::unused"]
        [::std::mem::offset_of!(NormBwdParams, unused) - 44usize];
};
#[repr(C)]
#[derive(Debug, Default, Copy, Clone, bytemuck :: Pod, bytemuck :: Zeroable)]
pub struct RotateBwdParams {
    pub qkv: u64,
    pub q_norm: u64,
    pub k_norm: u64,
    pub angles: u64,
    pub dk: u64,
    pub dv: u64,
    pub dqkv: u64,
    pub rows: u32,
    pub heads: u32,
    pub kv_heads: u32,
    pub head_dim: u32,
    pub at: u32,
    pub eps: f32,
    pub interleaved: u32,
    pub unused: u32,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of RotateBwdParams"][::std::mem::size_of::<RotateBwdParams>() - 88usize];
    ["Alignment of RotateBwdParams"][::std::mem::align_of::<RotateBwdParams>() - 8usize];
    ["Offset of field: RotateBwdParams::qkv"]
        [::std::mem::offset_of!(RotateBwdParams, qkv) - 0usize];
    ["Offset of field: RotateBwdParams::q_norm"]
        [::std::mem::offset_of!(RotateBwdParams, q_norm) - 8usize];
    ["Offset of field: RotateBwdParams::k_norm"]
        [::std::mem::offset_of!(RotateBwdParams, k_norm) - 16usize];
    ["Offset of field: RotateBwdParams::angles"]
        [::std::mem::offset_of!(RotateBwdParams, angles) - 24usize];
    ["Offset of field: RotateBwdParams::dk"][::std::mem::offset_of!(RotateBwdParams, dk) - 32usize];
    ["Offset of field: RotateBwdParams::dv"][::std::mem::offset_of!(RotateBwdParams, dv) - 40usize];
    ["Offset of field: RotateBwdParams::dqkv"]
        [::std::mem::offset_of!(RotateBwdParams, dqkv) - 48usize];
    ["Offset of field: RotateBwdParams::rows"]
        [::std::mem::offset_of!(RotateBwdParams, rows) - 56usize];
    ["Offset of field: RotateBwdParams::heads"]
        [::std::mem::offset_of!(RotateBwdParams, heads) - 60usize];
    ["Offset of field: RotateBwdParams::kv_heads"]
        [::std::mem::offset_of!(RotateBwdParams, kv_heads) - 64usize];
    ["Offset of field: RotateBwdParams::head_dim"]
        [::std::mem::offset_of!(RotateBwdParams, head_dim) - 68usize];
    ["Offset of field: RotateBwdParams::at"][::std::mem::offset_of!(RotateBwdParams, at) - 72usize];
    ["Offset of field: RotateBwdParams::eps"]
        [::std::mem::offset_of!(RotateBwdParams, eps) - 76usize];
    ["Offset of field: RotateBwdParams::interleaved"]
        [::std::mem::offset_of!(RotateBwdParams, interleaved) - 80usize];
    ["Offset of field: RotateBwdParams::unused"]
        [::std::mem::offset_of!(RotateBwdParams, unused) - 84usize];
};
#[repr(C)]
#[derive(Debug, Default, Copy, Clone, bytemuck :: Pod, bytemuck :: Zeroable)]
pub struct ActivateBwdParams {
    pub x: u64,
    pub dy: u64,
    pub dx: u64,
    pub rows: u32,
    pub width: u32,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of ActivateBwdParams"][::std::mem::size_of::<ActivateBwdParams>() - 32usize];
    ["Alignment of ActivateBwdParams"][::std::mem::align_of::<ActivateBwdParams>() - 8usize];
    ["Offset of field: ActivateBwdParams::x"]
        [::std::mem::offset_of!(ActivateBwdParams, x) - 0usize];
    ["Offset of field: ActivateBwdParams::dy"]
        [::std::mem::offset_of!(ActivateBwdParams, dy) - 8usize];
    ["Offset of field: ActivateBwdParams::dx"]
        [::std::mem::offset_of!(ActivateBwdParams, dx) - 16usize];
    ["Offset of field: ActivateBwdParams::rows"]
        [::std::mem::offset_of!(ActivateBwdParams, rows) - 24usize];
    ["Offset of field: ActivateBwdParams::width"]
        [::std::mem::offset_of!(ActivateBwdParams, width) - 28usize];
};
#[repr(C)]
#[derive(Debug, Default, Copy, Clone, bytemuck :: Pod, bytemuck :: Zeroable)]
pub struct DropoutParams {
    pub x: u64,
    pub y: u64,
    pub len: u32,
    pub threshold: u32,
    pub seed_low: u32,
    pub seed_high: u32,
    pub scale: f32,
    pub add: u32,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of DropoutParams"][::std::mem::size_of::<DropoutParams>() - 40usize];
    ["Alignment of DropoutParams"][::std::mem::align_of::<DropoutParams>() - 8usize];
    ["Offset of field: DropoutParams::x"][::std::mem::offset_of!(DropoutParams, x) - 0usize];
    ["Offset of field: DropoutParams::y"][::std::mem::offset_of!(DropoutParams, y) - 8usize];
    ["Offset of field: DropoutParams::len"][::std::mem::offset_of!(DropoutParams, len) - 16usize];
    ["Offset of field: DropoutParams::threshold"]
        [::std::mem::offset_of!(DropoutParams, threshold) - 20usize];
    ["Offset of field: DropoutParams::seed_low"]
        [::std::mem::offset_of!(DropoutParams, seed_low) - 24usize];
    ["Offset of field: DropoutParams::seed_high"]
        [::std::mem::offset_of!(DropoutParams, seed_high) - 28usize];
    ["Offset of field: DropoutParams::scale"]
        [::std::mem::offset_of!(DropoutParams, scale) - 32usize];
    ["Offset of field: DropoutParams::add"][::std::mem::offset_of!(DropoutParams, add) - 36usize];
};
#[repr(C)]
#[derive(Debug, Default, Copy, Clone, bytemuck :: Pod, bytemuck :: Zeroable)]
pub struct LoraSpan {
    pub from: u32,
    pub width: u32,
    pub rank: u32,
    pub ranks: u32,
    pub first: u32,
    pub count: u32,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of LoraSpan"][::std::mem::size_of::<LoraSpan>() - 24usize];
    ["Alignment of LoraSpan"][::std::mem::align_of::<LoraSpan>() - 4usize];
    ["Offset of field: LoraSpan::from"][::std::mem::offset_of!(LoraSpan, from) - 0usize];
    ["Offset of field: LoraSpan::width"][::std::mem::offset_of!(LoraSpan, width) - 4usize];
    ["Offset of field: LoraSpan::rank"][::std::mem::offset_of!(LoraSpan, rank) - 8usize];
    ["Offset of field: LoraSpan::ranks"][::std::mem::offset_of!(LoraSpan, ranks) - 12usize];
    ["Offset of field: LoraSpan::first"][::std::mem::offset_of!(LoraSpan, first) - 16usize];
    ["Offset of field: LoraSpan::count"][::std::mem::offset_of!(LoraSpan, count) - 20usize];
};
#[repr(C)]
#[derive(Debug, Default, Copy, Clone, bytemuck :: Pod, bytemuck :: Zeroable)]
pub struct LoraParams {
    pub x: u64,
    pub a: u64,
    pub b: u64,
    pub y: u64,
    pub low: u64,
    pub spans: [LoraSpan; 3usize],
    pub rows: u32,
    pub x_ld: u32,
    pub a_ld: u32,
    pub b_ld: u32,
    pub y_ld: u32,
    pub low_ld: u32,
    pub count: u32,
    pub run: u32,
    pub to_first_span: u32,
    pub drops: u32,
    pub width: u32,
    pub threshold: u32,
    pub seed_low: u32,
    pub seed_high: u32,
    pub scale: f32,
    pub kept: f32,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of LoraParams"][::std::mem::size_of::<LoraParams>() - 176usize];
    ["Alignment of LoraParams"][::std::mem::align_of::<LoraParams>() - 8usize];
    ["Offset of field: LoraParams::x"][::std::mem::offset_of!(LoraParams, x) - 0usize];
    ["Offset of field: LoraParams::a"][::std::mem::offset_of!(LoraParams, a) - 8usize];
    ["Offset of field: LoraParams::b"][::std::mem::offset_of!(LoraParams, b) - 16usize];
    ["Offset of field: LoraParams::y"][::std::mem::offset_of!(LoraParams, y) - 24usize];
    ["Offset of field: LoraParams::low"][::std::mem::offset_of!(LoraParams, low) - 32usize];
    ["Offset of field: LoraParams::spans"][::std::mem::offset_of!(LoraParams, spans) - 40usize];
    ["Offset of field: LoraParams::rows"][::std::mem::offset_of!(LoraParams, rows) - 112usize];
    ["Offset of field: LoraParams::x_ld"][::std::mem::offset_of!(LoraParams, x_ld) - 116usize];
    ["Offset of field: LoraParams::a_ld"][::std::mem::offset_of!(LoraParams, a_ld) - 120usize];
    ["Offset of field: LoraParams::b_ld"][::std::mem::offset_of!(LoraParams, b_ld) - 124usize];
    ["Offset of field: LoraParams::y_ld"][::std::mem::offset_of!(LoraParams, y_ld) - 128usize];
    ["Offset of field: LoraParams::low_ld"][::std::mem::offset_of!(LoraParams, low_ld) - 132usize];
    ["Offset of field: LoraParams::count"][::std::mem::offset_of!(LoraParams, count) - 136usize];
    ["Offset of field: LoraParams::run"][::std::mem::offset_of!(LoraParams, run) - 140usize];
    ["Offset of field: LoraParams::to_first_span"]
        [::std::mem::offset_of!(LoraParams, to_first_span) - 144usize];
    ["Offset of field: LoraParams::drops"][::std::mem::offset_of!(LoraParams, drops) - 148usize];
    ["Offset of field: LoraParams::width"][::std::mem::offset_of!(LoraParams, width) - 152usize];
    ["Offset of field: LoraParams::threshold"]
        [::std::mem::offset_of!(LoraParams, threshold) - 156usize];
    ["Offset of field: LoraParams::seed_low"]
        [::std::mem::offset_of!(LoraParams, seed_low) - 160usize];
    ["Offset of field: LoraParams::seed_high"]
        [::std::mem::offset_of!(LoraParams, seed_high) - 164usize];
    ["Offset of field: LoraParams::scale"][::std::mem::offset_of!(LoraParams, scale) - 168usize];
    ["Offset of field: LoraParams::kept"][::std::mem::offset_of!(LoraParams, kept) - 172usize];
};
#[repr(C)]
#[derive(Debug, Default, Copy, Clone, bytemuck :: Pod, bytemuck :: Zeroable)]
pub struct LoraGradient {
    pub narrow: u64,
    pub wide: u64,
    pub out: u64,
    pub ranks: u32,
    pub wide_ld: u32,
    pub out_ld: u32,
    pub first: u32,
    pub count: u32,
    pub across: u32,
    pub drops: u32,
    pub unused: u32,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of LoraGradient"][::std::mem::size_of::<LoraGradient>() - 56usize];
    ["Alignment of LoraGradient"][::std::mem::align_of::<LoraGradient>() - 8usize];
    ["Offset of field: LoraGradient::narrow"]
        [::std::mem::offset_of!(LoraGradient, narrow) - 0usize];
    ["Offset of field: LoraGradient::wide"][::std::mem::offset_of!(LoraGradient, wide) - 8usize];
    ["Offset of field: LoraGradient::out"][::std::mem::offset_of!(LoraGradient, out) - 16usize];
    ["Offset of field: LoraGradient::ranks"][::std::mem::offset_of!(LoraGradient, ranks) - 24usize];
    ["Offset of field: LoraGradient::wide_ld"]
        [::std::mem::offset_of!(LoraGradient, wide_ld) - 28usize];
    ["Offset of field: LoraGradient::out_ld"]
        [::std::mem::offset_of!(LoraGradient, out_ld) - 32usize];
    ["Offset of field: LoraGradient::first"][::std::mem::offset_of!(LoraGradient, first) - 36usize];
    ["Offset of field: LoraGradient::count"][::std::mem::offset_of!(LoraGradient, count) - 40usize];
    ["Offset of field: LoraGradient::across"]
        [::std::mem::offset_of!(LoraGradient, across) - 44usize];
    ["Offset of field: LoraGradient::drops"][::std::mem::offset_of!(LoraGradient, drops) - 48usize];
    ["Offset of field: LoraGradient::unused"]
        [::std::mem::offset_of!(LoraGradient, unused) - 52usize];
};
#[repr(C)]
#[derive(Debug, Default, Copy, Clone, bytemuck :: Pod, bytemuck :: Zeroable)]
pub struct LoraBwdParams {
    pub gradients: [LoraGradient; 6usize],
    pub rows: u32,
    pub narrow_ld: u32,
    pub width: u32,
    pub threshold: u32,
    pub seed_low: u32,
    pub seed_high: u32,
    pub scale: f32,
    pub unused: u32,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of LoraBwdParams"][::std::mem::size_of::<LoraBwdParams>() - 368usize];
    ["Alignment of LoraBwdParams"][::std::mem::align_of::<LoraBwdParams>() - 8usize];
    ["Offset of field: LoraBwdParams::gradients"]
        [::std::mem::offset_of!(LoraBwdParams, gradients) - 0usize];
    ["Offset of field: LoraBwdParams::rows"]
        [::std::mem::offset_of!(LoraBwdParams, rows) - 336usize];
    ["Offset of field: LoraBwdParams::narrow_ld"]
        [::std::mem::offset_of!(LoraBwdParams, narrow_ld) - 340usize];
    ["Offset of field: LoraBwdParams::width"]
        [::std::mem::offset_of!(LoraBwdParams, width) - 344usize];
    ["Offset of field: LoraBwdParams::threshold"]
        [::std::mem::offset_of!(LoraBwdParams, threshold) - 348usize];
    ["Offset of field: LoraBwdParams::seed_low"]
        [::std::mem::offset_of!(LoraBwdParams, seed_low) - 352usize];
    ["Offset of field: LoraBwdParams::seed_high"]
        [::std::mem::offset_of!(LoraBwdParams, seed_high) - 356usize];
    ["Offset of field: LoraBwdParams::scale"]
        [::std::mem::offset_of!(LoraBwdParams, scale) - 360usize];
    ["Offset of field: LoraBwdParams::unused"]
        [::std::mem::offset_of!(LoraBwdParams, unused) - 364usize];
};
#[repr(C)]
#[derive(Debug, Default, Copy, Clone, bytemuck :: Pod, bytemuck :: Zeroable)]
pub struct AttentionTile {
    pub row: u32,
    pub count: u32,
    pub position: u32,
    pub from: u32,
    pub own: u32,
    pub end: u32,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of AttentionTile"][::std::mem::size_of::<AttentionTile>() - 24usize];
    ["Alignment of AttentionTile"][::std::mem::align_of::<AttentionTile>() - 4usize];
    ["Offset of field: AttentionTile::row"][::std::mem::offset_of!(AttentionTile, row) - 0usize];
    ["Offset of field: AttentionTile::count"]
        [::std::mem::offset_of!(AttentionTile, count) - 4usize];
    ["Offset of field: AttentionTile::position"]
        [::std::mem::offset_of!(AttentionTile, position) - 8usize];
    ["Offset of field: AttentionTile::from"][::std::mem::offset_of!(AttentionTile, from) - 12usize];
    ["Offset of field: AttentionTile::own"][::std::mem::offset_of!(AttentionTile, own) - 16usize];
    ["Offset of field: AttentionTile::end"][::std::mem::offset_of!(AttentionTile, end) - 20usize];
};
#[repr(C)]
#[derive(Debug, Default, Copy, Clone, bytemuck :: Pod, bytemuck :: Zeroable)]
pub struct AttentionParams {
    pub qkv: u64,
    pub k: u64,
    pub v: u64,
    pub tiles: u64,
    pub out: u64,
    pub parts: u64,
    pub lse: u64,
    pub packed: u64,
    pub rows: u32,
    pub heads: u32,
    pub kv_heads: u32,
    pub head_dim: u32,
    pub prefix: u32,
    pub splits: u32,
    pub window: u32,
    pub scale: f32,
    pub ahead: u32,
    pub unused: u32,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of AttentionParams"][::std::mem::size_of::<AttentionParams>() - 104usize];
    ["Alignment of AttentionParams"][::std::mem::align_of::<AttentionParams>() - 8usize];
    ["Offset of field: AttentionParams::qkv"]
        [::std::mem::offset_of!(AttentionParams, qkv) - 0usize];
    ["Offset of field: AttentionParams::k"][::std::mem::offset_of!(AttentionParams, k) - 8usize];
    ["Offset of field: AttentionParams::v"][::std::mem::offset_of!(AttentionParams, v) - 16usize];
    ["Offset of field: AttentionParams::tiles"]
        [::std::mem::offset_of!(AttentionParams, tiles) - 24usize];
    ["Offset of field: AttentionParams::out"]
        [::std::mem::offset_of!(AttentionParams, out) - 32usize];
    ["Offset of field: AttentionParams::parts"]
        [::std::mem::offset_of!(AttentionParams, parts) - 40usize];
    ["Offset of field: AttentionParams::lse"]
        [::std::mem::offset_of!(AttentionParams, lse) - 48usize];
    ["Offset of field: AttentionParams::packed"]
        [::std::mem::offset_of!(AttentionParams, packed) - 56usize];
    ["Offset of field: AttentionParams::rows"]
        [::std::mem::offset_of!(AttentionParams, rows) - 64usize];
    ["Offset of field: AttentionParams::heads"]
        [::std::mem::offset_of!(AttentionParams, heads) - 68usize];
    ["Offset of field: AttentionParams::kv_heads"]
        [::std::mem::offset_of!(AttentionParams, kv_heads) - 72usize];
    ["Offset of field: AttentionParams::head_dim"]
        [::std::mem::offset_of!(AttentionParams, head_dim) - 76usize];
    ["Offset of field: AttentionParams::prefix"]
        [::std::mem::offset_of!(AttentionParams, prefix) - 80usize];
    ["Offset of field: AttentionParams::splits"]
        [::std::mem::offset_of!(AttentionParams, splits) - 84usize];
    ["Offset of field: AttentionParams::window"]
        [::std::mem::offset_of!(AttentionParams, window) - 88usize];
    ["Offset of field: AttentionParams::scale"]
        [::std::mem::offset_of!(AttentionParams, scale) - 92usize];
    ["Offset of field: AttentionParams::ahead"]
        [::std::mem::offset_of!(AttentionParams, ahead) - 96usize];
    ["Offset of field: AttentionParams::unused"]
        [::std::mem::offset_of!(AttentionParams, unused) - 100usize];
};
#[repr(C)]
#[derive(Debug, Default, Copy, Clone, bytemuck :: Pod, bytemuck :: Zeroable)]
pub struct AttentionMergeParams {
    pub parts: u64,
    pub out: u64,
    pub lse: u64,
    pub packed: u64,
    pub rows: u32,
    pub heads: u32,
    pub head_dim: u32,
    pub splits: u32,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of AttentionMergeParams"][::std::mem::size_of::<AttentionMergeParams>() - 48usize];
    ["Alignment of AttentionMergeParams"][::std::mem::align_of::<AttentionMergeParams>() - 8usize];
    ["Offset of field: AttentionMergeParams::parts"]
        [::std::mem::offset_of!(AttentionMergeParams, parts) - 0usize];
    ["Offset of field: AttentionMergeParams::out"]
        [::std::mem::offset_of!(AttentionMergeParams, out) - 8usize];
    ["Offset of field: AttentionMergeParams::lse"]
        [::std::mem::offset_of!(AttentionMergeParams, lse) - 16usize];
    ["Offset of field: AttentionMergeParams::packed"]
        [::std::mem::offset_of!(AttentionMergeParams, packed) - 24usize];
    ["Offset of field: AttentionMergeParams::rows"]
        [::std::mem::offset_of!(AttentionMergeParams, rows) - 32usize];
    ["Offset of field: AttentionMergeParams::heads"]
        [::std::mem::offset_of!(AttentionMergeParams, heads) - 36usize];
    ["Offset of field: AttentionMergeParams::head_dim"]
        [::std::mem::offset_of!(AttentionMergeParams, head_dim) - 40usize];
    ["Offset of field: AttentionMergeParams::splits"]
        [::std::mem::offset_of!(AttentionMergeParams, splits) - 44usize];
};
#[repr(C)]
#[derive(Debug, Default, Copy, Clone, bytemuck :: Pod, bytemuck :: Zeroable)]
pub struct KeyTile {
    pub row: u32,
    pub count: u32,
    pub first_visit: u32,
    pub visits: u32,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of KeyTile"][::std::mem::size_of::<KeyTile>() - 16usize];
    ["Alignment of KeyTile"][::std::mem::align_of::<KeyTile>() - 4usize];
    ["Offset of field: KeyTile::row"][::std::mem::offset_of!(KeyTile, row) - 0usize];
    ["Offset of field: KeyTile::count"][::std::mem::offset_of!(KeyTile, count) - 4usize];
    ["Offset of field: KeyTile::first_visit"]
        [::std::mem::offset_of!(KeyTile, first_visit) - 8usize];
    ["Offset of field: KeyTile::visits"][::std::mem::offset_of!(KeyTile, visits) - 12usize];
};
#[repr(C)]
#[derive(Debug, Default, Copy, Clone, bytemuck :: Pod, bytemuck :: Zeroable)]
pub struct Visit {
    pub position: u32,
    pub row: u32,
    pub queries: u32,
    pub unused: u32,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of Visit"][::std::mem::size_of::<Visit>() - 16usize];
    ["Alignment of Visit"][::std::mem::align_of::<Visit>() - 4usize];
    ["Offset of field: Visit::position"][::std::mem::offset_of!(Visit, position) - 0usize];
    ["Offset of field: Visit::row"][::std::mem::offset_of!(Visit, row) - 4usize];
    ["Offset of field: Visit::queries"][::std::mem::offset_of!(Visit, queries) - 8usize];
    ["Offset of field: Visit::unused"][::std::mem::offset_of!(Visit, unused) - 12usize];
};
#[repr(C)]
#[derive(Debug, Default, Copy, Clone, bytemuck :: Pod, bytemuck :: Zeroable)]
pub struct AttentionDeltaParams {
    pub out: u64,
    pub dout: u64,
    pub delta: u64,
    pub rows: u32,
    pub head_dim: u32,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of AttentionDeltaParams"][::std::mem::size_of::<AttentionDeltaParams>() - 32usize];
    ["Alignment of AttentionDeltaParams"][::std::mem::align_of::<AttentionDeltaParams>() - 8usize];
    ["Offset of field: AttentionDeltaParams::out"]
        [::std::mem::offset_of!(AttentionDeltaParams, out) - 0usize];
    ["Offset of field: AttentionDeltaParams::dout"]
        [::std::mem::offset_of!(AttentionDeltaParams, dout) - 8usize];
    ["Offset of field: AttentionDeltaParams::delta"]
        [::std::mem::offset_of!(AttentionDeltaParams, delta) - 16usize];
    ["Offset of field: AttentionDeltaParams::rows"]
        [::std::mem::offset_of!(AttentionDeltaParams, rows) - 24usize];
    ["Offset of field: AttentionDeltaParams::head_dim"]
        [::std::mem::offset_of!(AttentionDeltaParams, head_dim) - 28usize];
};
#[repr(C)]
#[derive(Debug, Default, Copy, Clone, bytemuck :: Pod, bytemuck :: Zeroable)]
pub struct AttentionBwdParams {
    pub qkv: u64,
    pub k: u64,
    pub v: u64,
    pub lse: u64,
    pub delta: u64,
    pub dout: u64,
    pub dqkv: u64,
    pub dk: u64,
    pub dv: u64,
    pub tiles: u64,
    pub keys: u64,
    pub visits: u64,
    pub heads: u32,
    pub kv_heads: u32,
    pub head_dim: u32,
    pub prefix: u32,
    pub splits: u32,
    pub window: u32,
    pub scale: f32,
    pub ahead: u32,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of AttentionBwdParams"][::std::mem::size_of::<AttentionBwdParams>() - 128usize];
    ["Alignment of AttentionBwdParams"][::std::mem::align_of::<AttentionBwdParams>() - 8usize];
    ["Offset of field: AttentionBwdParams::qkv"]
        [::std::mem::offset_of!(AttentionBwdParams, qkv) - 0usize];
    ["Offset of field: AttentionBwdParams::k"]
        [::std::mem::offset_of!(AttentionBwdParams, k) - 8usize];
    ["Offset of field: AttentionBwdParams::v"]
        [::std::mem::offset_of!(AttentionBwdParams, v) - 16usize];
    ["Offset of field: AttentionBwdParams::lse"]
        [::std::mem::offset_of!(AttentionBwdParams, lse) - 24usize];
    ["Offset of field: AttentionBwdParams::delta"]
        [::std::mem::offset_of!(AttentionBwdParams, delta) - 32usize];
    ["Offset of field: AttentionBwdParams::dout"]
        [::std::mem::offset_of!(AttentionBwdParams, dout) - 40usize];
    ["Offset of field: AttentionBwdParams::dqkv"]
        [::std::mem::offset_of!(AttentionBwdParams, dqkv) - 48usize];
    ["Offset of field: AttentionBwdParams::dk"]
        [::std::mem::offset_of!(AttentionBwdParams, dk) - 56usize];
    ["Offset of field: AttentionBwdParams::dv"]
        [::std::mem::offset_of!(AttentionBwdParams, dv) - 64usize];
    ["Offset of field: AttentionBwdParams::tiles"]
        [::std::mem::offset_of!(AttentionBwdParams, tiles) - 72usize];
    ["Offset of field: AttentionBwdParams::keys"]
        [::std::mem::offset_of!(AttentionBwdParams, keys) - 80usize];
    ["Offset of field: AttentionBwdParams::visits"]
        [::std::mem::offset_of!(AttentionBwdParams, visits) - 88usize];
    ["Offset of field: AttentionBwdParams::heads"]
        [::std::mem::offset_of!(AttentionBwdParams, heads) - 96usize];
    ["Offset of field: AttentionBwdParams::kv_heads"]
        [::std::mem::offset_of!(AttentionBwdParams, kv_heads) - 100usize];
    ["Offset of field: AttentionBwdParams::head_dim"]
        [::std::mem::offset_of!(AttentionBwdParams, head_dim) - 104usize];
    ["Offset of field: AttentionBwdParams::prefix"]
        [::std::mem::offset_of!(AttentionBwdParams, prefix) - 108usize];
    ["Offset of field: AttentionBwdParams::splits"]
        [::std::mem::offset_of!(AttentionBwdParams, splits) - 112usize];
    ["Offset of field: AttentionBwdParams::window"]
        [::std::mem::offset_of!(AttentionBwdParams, window) - 116usize];
    ["Offset of field: AttentionBwdParams::scale"]
        [::std::mem::offset_of!(AttentionBwdParams, scale) - 120usize];
    ["Offset of field: AttentionBwdParams::ahead"]
        [::std::mem::offset_of!(AttentionBwdParams, ahead) - 124usize];
};
#[repr(C)]
#[derive(Debug, Default, Copy, Clone, bytemuck :: Pod, bytemuck :: Zeroable)]
pub struct PruneText {
    pub left: u32,
    pub past: u32,
    pub read: u32,
    pub end: u32,
    pub run: u32,
    pub runs: u32,
    pub size: u32,
    pub unused: u32,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of PruneText"][::std::mem::size_of::<PruneText>() - 32usize];
    ["Alignment of PruneText"][::std::mem::align_of::<PruneText>() - 4usize];
    ["Offset of field: PruneText::left"][::std::mem::offset_of!(PruneText, left) - 0usize];
    ["Offset of field: PruneText::past"][::std::mem::offset_of!(PruneText, past) - 4usize];
    ["Offset of field: PruneText::read"][::std::mem::offset_of!(PruneText, read) - 8usize];
    ["Offset of field: PruneText::end"][::std::mem::offset_of!(PruneText, end) - 12usize];
    ["Offset of field: PruneText::run"][::std::mem::offset_of!(PruneText, run) - 16usize];
    ["Offset of field: PruneText::runs"][::std::mem::offset_of!(PruneText, runs) - 20usize];
    ["Offset of field: PruneText::size"][::std::mem::offset_of!(PruneText, size) - 24usize];
    ["Offset of field: PruneText::unused"][::std::mem::offset_of!(PruneText, unused) - 28usize];
};
#[repr(C)]
#[derive(Debug, Default, Copy, Clone, bytemuck :: Pod, bytemuck :: Zeroable)]
pub struct PruneRun {
    pub ratio: f64,
    pub tokens: u32,
    pub last: u32,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of PruneRun"][::std::mem::size_of::<PruneRun>() - 16usize];
    ["Alignment of PruneRun"][::std::mem::align_of::<PruneRun>() - 8usize];
    ["Offset of field: PruneRun::ratio"][::std::mem::offset_of!(PruneRun, ratio) - 0usize];
    ["Offset of field: PruneRun::tokens"][::std::mem::offset_of!(PruneRun, tokens) - 8usize];
    ["Offset of field: PruneRun::last"][::std::mem::offset_of!(PruneRun, last) - 12usize];
};
#[repr(C)]
#[derive(Debug, Default, Copy, Clone, bytemuck :: Pod, bytemuck :: Zeroable)]
pub struct PruneParams {
    pub ids: u64,
    pub from: u64,
    pub loss: u64,
    pub nll: u64,
    pub fresh: u64,
    pub texts: u64,
    pub runs: u64,
    pub inputs: u64,
    pub targets: u64,
    pub positions: u64,
    pub places: u64,
    pub tiles: u64,
    pub capacity: u32,
    pub rows: u32,
    pub tile: u32,
    pub unused: u32,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of PruneParams"][::std::mem::size_of::<PruneParams>() - 112usize];
    ["Alignment of PruneParams"][::std::mem::align_of::<PruneParams>() - 8usize];
    ["Offset of field: PruneParams::ids"][::std::mem::offset_of!(PruneParams, ids) - 0usize];
    ["Offset of field: PruneParams::from"][::std::mem::offset_of!(PruneParams, from) - 8usize];
    ["Offset of field: PruneParams::loss"][::std::mem::offset_of!(PruneParams, loss) - 16usize];
    ["Offset of field: PruneParams::nll"][::std::mem::offset_of!(PruneParams, nll) - 24usize];
    ["Offset of field: PruneParams::fresh"][::std::mem::offset_of!(PruneParams, fresh) - 32usize];
    ["Offset of field: PruneParams::texts"][::std::mem::offset_of!(PruneParams, texts) - 40usize];
    ["Offset of field: PruneParams::runs"][::std::mem::offset_of!(PruneParams, runs) - 48usize];
    ["Offset of field: PruneParams::inputs"][::std::mem::offset_of!(PruneParams, inputs) - 56usize];
    ["Offset of field: PruneParams::targets"]
        [::std::mem::offset_of!(PruneParams, targets) - 64usize];
    ["Offset of field: PruneParams::positions"]
        [::std::mem::offset_of!(PruneParams, positions) - 72usize];
    ["Offset of field: PruneParams::places"][::std::mem::offset_of!(PruneParams, places) - 80usize];
    ["Offset of field: PruneParams::tiles"][::std::mem::offset_of!(PruneParams, tiles) - 88usize];
    ["Offset of field: PruneParams::capacity"]
        [::std::mem::offset_of!(PruneParams, capacity) - 96usize];
    ["Offset of field: PruneParams::rows"][::std::mem::offset_of!(PruneParams, rows) - 100usize];
    ["Offset of field: PruneParams::tile"][::std::mem::offset_of!(PruneParams, tile) - 104usize];
    ["Offset of field: PruneParams::unused"]
        [::std::mem::offset_of!(PruneParams, unused) - 108usize];
};
