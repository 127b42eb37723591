//! How much an archive may have of anything, beside the setting `code_bytes`: far more than PyTorch writes, and little enough that a file which
//! claims more costs neither the process its memory or its stack, nor anybody minutes.

/// Bytes of an archive's directory. PyTorch's have some hundred for each tensor.
pub(crate) const DIRECTORY_BYTES: u64 = 16 << 20;

/// Files in an archive: one for each tensor, and for each module of code two. Names are kept twice, once to be found by.
pub(crate) const ENTRIES: u64 = 1 << 16;

/// Bytes of a name: of a file, of a class, of what a pickle refers to. Linux has no longer paths.
pub(crate) const NAME_BYTES: usize = 4096;

/// Brackets in brackets, operators on what operators give, blocks in blocks of code: none that PyTorch writes has as many, and libtorch's parser, which
/// calls itself for each, overflows the 2 MiB of a thread's stack at some 700 brackets, or 1500 operators.
pub(crate) const CODE_DEPTH: usize = 256;

/// Arguments of `forward`.
pub(crate) const ARGUMENTS: usize = 1024;

/// Values in values of a pickle: modules in modules, tuples in lists. libtorch calls itself for each when it ends them.
pub(crate) const VALUE_DEPTH: u16 = 200;

/// Bytes of `code_bytes` for each value of a pickle. One takes 24 while it is looked at, and libtorch a few more; 2 million values fit the
/// default. A network of a thousand tensors has some 40,000.
pub(crate) const BYTES_PER_VALUE: u64 = 32;

/// Values of a module's pickle, each counted as often as it can be reached. libtorch walks through constants without remembering where it
/// has been, so that thirty tuples, each with the one before in it twice, would take it hours.
pub(crate) const REACHED: u64 = 1 << 24;

/// Dimensions of a tensor; libtorch's own loops have room for 64.
pub(crate) const DIMENSIONS: usize = 64;
