//! Execution providers of a session: appended to its options, and asked afterwards what they took.

use std::collections::BTreeMap;
use std::ffi::{CStr, CString, c_char};
use std::ptr::{null, null_mut};

use ort::AsPointer;
use ort::session::builder::SessionBuilder;
use ort::sys::{OrtMemoryInfo, OrtMemoryInfoDeviceType, OrtSession, OrtSessionOptions, OrtStatusPtr};

use crate::editor::AnySession;
use crate::provider::ExecutionProvider;
use crate::raw::check;
use crate::session::Made;

const CUDA: &str = "CUDAExecutionProvider";
pub(crate) const TENSORRT: &str = "TensorrtExecutionProvider";

/// Appends a provider to a session's options. One that the library has not, or that does not start, is an error; `ort` would
/// let the session go on without it.
pub(crate) fn append(builder: &SessionBuilder, provider: &ExecutionProvider) -> ort::Result<()> {
    let text =
        |text: &String| CString::new(text.as_str()).map_err(|error| ort::Error::new(error.to_string()));
    let keys = provider.options.iter().map(|(key, _)| text(key)).collect::<ort::Result<Vec<_>>>()?;
    let values = provider.options.iter().map(|(_, value)| text(value)).collect::<ort::Result<Vec<_>>>()?;
    let name = text(&provider.name)?;
    let options = Options {
        keys: keys.iter().map(|key| key.as_ptr()).collect(),
        values: values.iter().map(|value| value.as_ptr()).collect(),
    };
    let session = builder.ptr().cast_mut();
    let appended = match provider.name.as_str() {
        CUDA => options.append_cuda(session),
        TENSORRT => options.append_tensorrt(session),
        // SAFETY: the options are live, and as many keys and values as is said; all texts live until the end of the call.
        _ => check(unsafe {
            (ort::api().SessionOptionsAppendExecutionProvider)(
                session,
                name.as_ptr(),
                options.keys.as_ptr(),
                options.values.as_ptr(),
                options.keys.len(),
            )
        }),
    };
    // What an assertion of ONNX Runtime's adds in front is its place in the source and its condition, or its place and a code.
    let why = |error: &ort::Error| {
        let message = error.message();
        let coded = message.rsplit_once("[ONNXRuntimeError] : ");
        let coded = coded.and_then(|(_, coded)| coded.splitn(3, " : ").nth(2));
        let asserted = || message.split_once(" was false. ").map(|(_, why)| why);
        coded.or_else(asserted).unwrap_or(message).to_owned()
    };
    appended.map_err(|error| {
        ort::Error::new_with_code(error.code(), format!("{}: {}", provider.name, why(&error)))
    })
}

/// Keys and values that live in texts of somebody else's.
struct Options {
    keys: Vec<*const c_char>,
    values: Vec<*const c_char>,
}

/// The two providers whose options are an object of their own.
macro_rules! append_with_object {
    ($name:ident, $create:ident, $update:ident, $append:ident, $release:ident) => {
        fn $name(&self, session: *mut OrtSessionOptions) -> ort::Result<()> {
            let api = ort::api();
            let mut object = null_mut();
            // SAFETY: the pointer is a place of this frame; the object that comes is released below, and used until then alone. Keys
            // and values are as many as is said, and live; the session's options copy what they need of the object.
            unsafe {
                check((api.$create)(&mut object))?;
                let updated =
                    check((api.$update)(object, self.keys.as_ptr(), self.values.as_ptr(), self.keys.len()));
                let appended = updated.and_then(|()| check((api.$append)(session, object)));
                (api.$release)(object);
                appended
            }
        }
    };
}

impl Options {
    append_with_object!(
        append_cuda,
        CreateCUDAProviderOptions,
        UpdateCUDAProviderOptions,
        SessionOptionsAppendExecutionProvider_CUDA_V2,
        ReleaseCUDAProviderOptions
    );
    append_with_object!(
        append_tensorrt,
        CreateTensorRTProviderOptions,
        UpdateTensorRTProviderOptions,
        SessionOptionsAppendExecutionProvider_TensorRT_V2,
        ReleaseTensorRTProviderOptions
    );
}

/// Lets a session write down who took which operators, for [`taken`].
pub(crate) const RECORD: (&str, &str) = ("session.record_ep_graph_assignment_info", "1");

/// How many operators each provider took, by the provider's name. Operators that were made one count as that. Not all providers let
/// theirs be counted: that for WebGPU in 1.27 does not.
pub(crate) fn taken(session: &AnySession) -> ort::Result<BTreeMap<String, usize>> {
    let api = ort::api();
    let (mut parts, mut count) = (null(), 0);
    let mut taken = BTreeMap::new();
    // SAFETY: the session is live, and the parts are its own; all pointers are places of this frame, and there are as many parts as
    // is said. A name is a text that lives as long as its part.
    unsafe {
        check((api.Session_GetEpGraphAssignmentInfo)(session.ptr(), &mut parts, &mut count))?;
        let parts = if parts.is_null() { &[][..] } else { std::slice::from_raw_parts(parts, count) };
        for part in parts {
            let (mut name, mut nodes, mut count) = (null(), null(), 0);
            check((api.EpAssignedSubgraph_GetEpName)(*part, &mut name))?;
            check((api.EpAssignedSubgraph_GetNodes)(*part, &mut nodes, &mut count))?;
            if !name.is_null() {
                *taken.entry(CStr::from_ptr(name).to_string_lossy().into_owned()).or_default() += count;
            }
        }
    }
    Ok(taken)
}

/// Whether an input is first read, or an output written, in memory of a device's: by an operator that runs there.
pub(crate) fn is_on_a_device(made: &Made) -> ort::Result<bool> {
    let outputs = places(&made.session, ort::api().SessionGetMemoryInfoForOutputs, made.outputs.len())?;
    Ok(inputs_on_a_device(made)?.into_iter().chain(outputs).any(|is_there| is_there))
}

/// Of each input, whether it is first read there: it goes there as it comes.
pub(crate) fn inputs_on_a_device(made: &Made) -> ort::Result<Vec<bool>> {
    places(&made.session, ort::api().SessionGetMemoryInfoForInputs, made.inputs.len())
}

type GetPlaces =
    unsafe extern "system" fn(*const OrtSession, *mut *const OrtMemoryInfo, usize) -> OrtStatusPtr;

fn places(session: &AnySession, ask: GetPlaces, count: usize) -> ort::Result<Vec<bool>> {
    const HOST: i32 = OrtMemoryInfoDeviceType::OrtMemoryInfoDeviceType_CPU as i32;
    let mut places = vec![null(); count];
    // SAFETY: the session is live, and there are as many places as is said, as it has told.
    check(unsafe { ask(session.ptr(), places.as_mut_ptr(), places.len()) })?;
    let is_device = |place: *const OrtMemoryInfo| {
        if place.is_null() {
            return false;
        }
        // Not of the enumeration's type, for a newer library may know more than that has.
        let mut device = HOST;
        // SAFETY: the description is the session's own, and lives as long; the pointer is a place of this frame, as large as the
        // enumeration.
        unsafe { (ort::api().MemoryInfoGetDeviceType)(place, (&raw mut device).cast()) };
        device != HOST
    };
    Ok(places.into_iter().map(is_device).collect())
}

/// The names of the providers that the library has, used or not.
pub(crate) fn available() -> ort::Result<Vec<String>> {
    let api = ort::api();
    let (mut names, mut count) = (null_mut(), 0);
    // SAFETY: both pointers are places of this frame. As many texts come as is said, live until they are released.
    unsafe {
        check((api.GetAvailableProviders)(&mut names, &mut count))?;
        let len = usize::try_from(count).unwrap_or(0);
        let texts = if names.is_null() { &[][..] } else { std::slice::from_raw_parts(names, len) };
        let available =
            texts.iter().map(|text| CStr::from_ptr(*text).to_string_lossy().into_owned()).collect();
        check((api.ReleaseAvailableProviders)(names, count))?;
        Ok(available)
    }
}
