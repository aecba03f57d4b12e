//! Which execution provider runs which part of a session's graph, as ONNX Runtime assigned it.

use std::collections::BTreeMap;
use std::ffi::{CStr, c_char};

use ort::AsPointer;
use ort::session::Session;
use ort::sys::{OrtEpAssignedNode, OrtEpAssignedSubgraph, OrtStatusPtr};

use crate::Error;

/// The session option that makes ONNX Runtime keep the assignment.
pub(crate) const RECORD: &str = "session.record_ep_graph_assignment_info";

/// ONNX Runtime's name of its CUDA provider.
pub(crate) const CUDA: &str = "CUDAExecutionProvider";
/// ONNX Runtime's name of its CPU provider.
pub(crate) const CPU: &str = "CPUExecutionProvider";

/// Provider → operator → number of nodes.
pub(crate) type Assignment = BTreeMap<String, BTreeMap<String, usize>>;

/// Operators that compute sizes, positions and masks. ONNX Runtime runs these on the CPU by design where
/// they follow from shapes alone, which is why `session.disable_cpu_ep_fallback` would refuse every model.
const SHAPES: [&str; 46] = [
    "Add",
    "And",
    "Cast",
    "Concat",
    "Constant",
    "ConstantOfShape",
    "Cos",
    "CumSum",
    "Div",
    "Equal",
    "Expand",
    "Floor",
    "Gather",
    "GatherElements",
    "GatherND",
    "Greater",
    "GreaterOrEqual",
    "Identity",
    "If",
    "IsNaN",
    "Less",
    "LessOrEqual",
    "Max",
    "Min",
    "Mod",
    "Mul",
    "Neg",
    "NonZero",
    "Not",
    "Or",
    "Range",
    "ReduceMax",
    "ReduceProd",
    "Reshape",
    "ScatterND",
    "Shape",
    "Sin",
    "Size",
    "Slice",
    "Sqrt",
    "Squeeze",
    "Sub",
    "Tile",
    "Trilu",
    "Unsqueeze",
    "Where",
];

/// Reads the assignment of a session that was made with [`RECORD`].
pub(crate) fn read(session: &Session) -> Result<Assignment, Error> {
    let failed = Error::onnx("reading which provider runs the graph");
    // SAFETY: the session is alive for the whole of this function, and what it is asked for belongs to it
    // and lives as long; every pointer is read before anything else is called on the session.
    unsafe { read_raw(session) }.map_err(failed)
}

/// # Safety
/// Nothing but the aliveness of the session, which the reference guarantees, is needed; unsafe because all
/// of it is C.
unsafe fn read_raw(session: &Session) -> ort::Result<Assignment> {
    let api = ort::api();
    let mut assignment = Assignment::new();
    // SAFETY: each call gets pointers that the one before returned, and places to write to; the arrays
    // have the lengths that come with them.
    unsafe {
        let subgraphs =
            array(|first, count| (api.Session_GetEpGraphAssignmentInfo)(session.ptr(), first, count))?;
        for &subgraph in subgraphs {
            let subgraph: *const OrtEpAssignedSubgraph = subgraph;
            let provider = text(|name| (api.EpAssignedSubgraph_GetEpName)(subgraph, name))?;
            let operators = assignment.entry(provider).or_default();
            let nodes = array(|first, count| (api.EpAssignedSubgraph_GetNodes)(subgraph, first, count))?;
            for &node in nodes {
                let node: *const OrtEpAssignedNode = node;
                let operator = text(|name| (api.EpAssignedNode_GetOperatorType)(node, name))?;
                *operators.entry(operator).or_insert(0) += 1;
            }
        }
    }
    Ok(assignment)
}

/// # Safety
/// `get` must write an array's address and length, or return an error.
unsafe fn array<'s, T>(
    get: impl FnOnce(*mut *const *const T, *mut usize) -> OrtStatusPtr,
) -> ort::Result<&'s [*const T]> {
    let (mut first, mut count) = (std::ptr::null(), 0);
    let status = get(&mut first, &mut count);
    // SAFETY: the status comes from ONNX Runtime; after success the array is there, empty if null.
    unsafe {
        ort::Error::result_from_status(status)?;
        Ok(if first.is_null() { &[] } else { std::slice::from_raw_parts(first, count) })
    }
}

/// # Safety
/// `get` must write the address of a C string, or return an error.
unsafe fn text(get: impl FnOnce(*mut *const c_char) -> OrtStatusPtr) -> ort::Result<String> {
    let mut first = std::ptr::null();
    let status = get(&mut first);
    // SAFETY: the status comes from ONNX Runtime; after success the string is there.
    unsafe {
        ort::Error::result_from_status(status)?;
        Ok(CStr::from_ptr(first).to_string_lossy().into_owned())
    }
}

/// Refuses a graph that was to run on CUDA and of which more than sizes and positions would run elsewhere.
pub(crate) fn all_on_cuda(assignment: &Assignment) -> Result<(), Error> {
    for (provider, operators) in assignment.iter().filter(|(provider, _)| *provider != CUDA) {
        let strays: Vec<String> = operators
            .iter()
            .filter(|(operator, _)| !SHAPES.contains(&operator.as_str()))
            .map(|(operator, count)| format!("{count} {operator}"))
            .collect();
        if !strays.is_empty() {
            return Err(Error::NotOnCuda { provider: provider.clone(), operators: strays.join(", ") });
        }
    }
    if assignment.contains_key(CUDA) {
        return Ok(());
    }
    let operators = "nothing was given to CUDA".to_string();
    Err(Error::NotOnCuda { provider: CPU.to_string(), operators })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn assignment(parts: &[(&str, &[&str])]) -> Assignment {
        let operators = |names: &[&str]| names.iter().map(|name| (name.to_string(), 1)).collect();
        parts.iter().map(|(provider, names)| (provider.to_string(), operators(names))).collect()
    }

    #[test]
    fn sizes_may_be_computed_on_the_cpu() {
        all_on_cuda(&assignment(&[(CUDA, &["Gemm", "Add"]), (CPU, &["Shape", "Concat", "Range"])])).unwrap();
    }

    #[test]
    fn a_product_on_the_cpu_is_refused_by_name() {
        let error = all_on_cuda(&assignment(&[(CUDA, &["Gemm"]), (CPU, &["Shape", "Attention"])]));
        let message = error.unwrap_err().to_string();
        assert!(message.contains("1 Attention") && message.contains(CPU), "{message}");
        assert!(!message.contains("Shape"), "{message}");
    }

    #[test]
    fn a_session_of_which_nothing_is_on_cuda_is_refused() {
        assert!(all_on_cuda(&assignment(&[(CPU, &["Shape"])])).is_err());
        assert!(all_on_cuda(&Assignment::new()).is_err());
    }
}
