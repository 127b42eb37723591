//! Sessions whose graph is edited before they are ready. `ort` has a type for it, which asks such a session for places of its tensors, and fails, for
//! it has none yet.

use std::ffi::{CStr, c_char};
use std::path::Path;
use std::ptr::{NonNull, null, null_mut};

use ort::AsPointer;
use ort::editor::{Model, editor_api};
use ort::session::Session;
use ort::session::builder::SessionBuilder;
use ort::sys::{ONNXTensorElementDataType as ElementType, OrtSession, OrtTypeInfo};
use outrigger_backend::TensorInfo;

use crate::raw::{check, data_type};
use crate::runtime::Runtime;

/// A session, however it was made.
pub(crate) enum AnySession {
    /// By `ort`.
    Plain(Session),
    /// Here.
    Edited(Edited),
}

impl AnySession {
    pub(crate) fn ptr(&self) -> *const OrtSession {
        match self {
            Self::Plain(session) => session.ptr(),
            Self::Edited(session) => session.0.as_ptr(),
        }
    }
}

/// A session that is owned here. ONNX Runtime's environment is the [`Runtime`]'s, which lives as long as the process.
pub(crate) struct Edited(NonNull<OrtSession>);

// SAFETY: a session is not tied to a thread.
unsafe impl Send for Edited {}
// SAFETY: ONNX Runtime promises that calls of one session may overlap.
unsafe impl Sync for Edited {}

impl Drop for Edited {
    fn drop(&mut self) {
        // SAFETY: the session is owned, and released only here.
        unsafe { (ort::api().ReleaseSession)(self.0.as_ptr()) }
    }
}

/// A session whose graph can still change.
pub(crate) struct Editable<'b> {
    session: Edited,
    builder: &'b SessionBuilder,
}

impl<'b> Editable<'b> {
    /// Reads the model at `path`.
    pub(crate) fn open(runtime: &Runtime, builder: &'b SessionBuilder, path: &Path) -> ort::Result<Self> {
        let mut place = path.as_os_str().as_encoded_bytes().to_vec();
        place.push(0);
        let mut session = null_mut();
        // SAFETY: environment and options are live, the path ends in a zero, and the pointer is a place of this frame.
        check(unsafe {
            (editor_api()?.CreateModelEditorSession)(
                runtime.environment.ptr(),
                place.as_ptr().cast(),
                builder.ptr(),
                &mut session,
            )
        })?;
        let session = NonNull::new(session).ok_or_else(|| ort::Error::new("ONNX Runtime made no session"))?;
        Ok(Self { session: Edited(session), builder })
    }

    /// The version of ONNX's operators that the model is of; 0 if it has none of these.
    pub(crate) fn opset(&self) -> ort::Result<u32> {
        let mut opset = 0;
        // SAFETY: the session is live, the domain's name ends in a zero, and the pointer is a place of this frame.
        let asked = check(unsafe {
            (editor_api()?.SessionGetOpsetForDomain)(self.session.0.as_ptr(), c"".as_ptr(), &mut opset)
        });
        Ok(asked.map_or(0, |()| u32::try_from(opset).unwrap_or(0)))
    }

    /// The model's inputs.
    pub(crate) fn inputs(&self) -> ort::Result<Vec<TensorInfo>> {
        let (session, api) = (self.session.0.as_ptr(), ort::api());
        let mut count = 0;
        // SAFETY: the session is live, and the pointer is a place of this frame.
        check(unsafe { (api.SessionGetInputCount)(session, &mut count) })?;
        // SAFETY: as above, and there are as many.
        (0..count)
            .map(|index| unsafe { one(session, index, api.SessionGetInputName, api.SessionGetInputTypeInfo) })
            .collect()
    }

    /// The model's outputs.
    pub(crate) fn outputs(&self) -> ort::Result<Vec<TensorInfo>> {
        let (session, api) = (self.session.0.as_ptr(), ort::api());
        let mut count = 0;
        // SAFETY: the session is live, and the pointer is a place of this frame.
        check(unsafe { (api.SessionGetOutputCount)(session, &mut count) })?;
        // SAFETY: as above, and there are as many.
        (0..count)
            .map(|index| unsafe {
                one(session, index, api.SessionGetOutputName, api.SessionGetOutputTypeInfo)
            })
            .collect()
    }

    /// Adds what is in `model` to the graph, with inputs and outputs instead of its own where there are any.
    pub(crate) fn apply(&mut self, model: &Model) -> ort::Result<()> {
        // SAFETY: both are live; ONNX Runtime copies what it takes of the model.
        check(unsafe {
            (editor_api()?.ApplyModelToModelEditorSession)(self.session.0.as_ptr(), model.ptr().cast_mut())
        })
    }

    /// Makes the session ready.
    pub(crate) fn finish(self) -> ort::Result<Edited> {
        // SAFETY: both are live; there are no weights to share.
        check(unsafe {
            (editor_api()?.FinalizeModelEditorSession)(self.session.0.as_ptr(), self.builder.ptr(), null())
        })?;
        Ok(self.session)
    }
}

type GetName = unsafe extern "system" fn(
    *const OrtSession,
    usize,
    *mut ort::sys::OrtAllocator,
    *mut *mut c_char,
) -> ort::sys::OrtStatusPtr;
type GetType =
    unsafe extern "system" fn(*const OrtSession, usize, *mut *mut OrtTypeInfo) -> ort::sys::OrtStatusPtr;

/// One input or output.
///
/// # Safety
/// The session is live and has as many of what the two functions tell of.
unsafe fn one(
    session: *const OrtSession,
    index: usize,
    get_name: GetName,
    get_type: GetType,
) -> ort::Result<TensorInfo> {
    let api = ort::api();
    let (mut allocator, mut text, mut info) = (null_mut(), null_mut(), null_mut());
    // SAFETY: promised by the caller; all pointers are places of this frame. The allocator is ONNX Runtime's own, the text is one that it has made
    // and ends in a zero, and the type is ours.
    unsafe {
        check((api.GetAllocatorWithDefaultOptions)(&mut allocator))?;
        check(get_name(session, index, allocator, &mut text))?;
        let name = CStr::from_ptr(text).to_string_lossy().into_owned();
        check((api.AllocatorFree)(allocator, text.cast()))?;
        check(get_type(session, index, &mut info))?;
        let described = tensor(&name, info);
        (api.ReleaseTypeInfo)(info);
        described
    }
}

/// # Safety
/// `info` is live.
unsafe fn tensor(name: &str, info: *const OrtTypeInfo) -> ort::Result<TensorInfo> {
    let api = ort::api();
    let (mut tensor, mut rank) = (null(), 0);
    let mut element = ElementType::ONNX_TENSOR_ELEMENT_DATA_TYPE_UNDEFINED;
    // SAFETY: promised by the caller; the tensor's description is part of it. All pointers are places of this frame, the lists as long as is said. A
    // symbol is a text of the description's that ends in a zero.
    unsafe {
        check((api.CastTypeInfoToTensorInfo)(info, &mut tensor))?;
        if tensor.is_null() {
            return Err(ort::Error::new(format!("`{name}` is no tensor, only tensors are carried")));
        }
        check((api.GetTensorElementType)(tensor, &mut element))?;
        check((api.GetDimensionsCount)(tensor, &mut rank))?;
        let (mut shape, mut symbols) = (vec![0; rank], vec![null::<c_char>(); rank]);
        check((api.GetDimensions)(tensor, shape.as_mut_ptr(), rank))?;
        check((api.GetSymbolicDimensions)(tensor, symbols.as_mut_ptr(), rank))?;
        let symbol = |text: &*const c_char| {
            if text.is_null() { String::new() } else { CStr::from_ptr(*text).to_string_lossy().into_owned() }
        };
        let unknown = || ort::Error::new(format!("`{name}` has elements of a type which is not carried"));
        Ok(TensorInfo {
            name: name.to_owned(),
            data_type: data_type(element).ok_or_else(unknown)?,
            shape: shape.iter().map(|extent: &i64| (*extent).max(-1)).collect(),
            symbols: symbols.iter().map(symbol).collect(),
        })
    }
}
