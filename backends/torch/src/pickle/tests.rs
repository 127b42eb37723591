use outrigger_testkit::torchscript;

use super::*;
use crate::counting;

/// A tensor of 8 elements of 4 bytes in key 0, with this offset, these extents and strides.
fn tensor(elements: u8, offset: i32, extents: &[i32], strides: &[i32]) -> Vec<u8> {
    let mut out =
        b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n((X\x07\0\0\0storagectorch\nFloatStorage\n".to_vec();
    out.extend(b"X\x01\0\0\x000X\x03\0\0\0cpuK");
    out.push(elements);
    out.extend(b"tQJ");
    out.extend(offset.to_le_bytes());
    for numbers in [extents, strides] {
        out.push(b'(');
        numbers.iter().for_each(|number| out.extend([&b"J"[..], &number.to_le_bytes()].concat()));
        out.push(b't');
    }
    out.extend(b"\x89ccollections\nOrderedDict\n)RtR.");
    out
}

fn size(key: &str) -> Option<u64> {
    (key == "0").then_some(32)
}

fn said(pickle: &[u8]) -> String {
    check(pickle, Limits::module(64 << 20), size).map_or_else(|error| error.to_string(), |()| "fine".into())
}

/// Of what follows the protocol.
fn broken(body: &[u8], why: &str) {
    assert_eq!(said(&[b"\x80\x02", body].concat()), format!("its pickle is broken: {why}"));
}

#[test]
fn what_is_called_is_a_function_that_is_known() {
    let good = tensor(8, 0, &[8], &[1]);
    assert_eq!(said(&good), "fine");
    let with = |from: &[u8], to: &[u8]| {
        let at = good.windows(from.len()).rposition(|part| part == from).unwrap();
        said(&[&good[..at], to, &good[at + from.len()..]].concat())
    };
    let called = "its pickle is broken: it calls what is no function";
    // libtorch keeps functions in a list of their own, and calls by `b` as by `R`; a type of elements is a number, which is a place in that list.
    assert_eq!(with(b"R.", b"b."), called);
    assert_eq!(with(b"ctorch._utils\n_rebuild_tensor_v2\n", b"K\x00"), called);
    assert_eq!(with(b"ctorch._utils\n_rebuild_tensor_v2\n", b"ctorch\nByteStorage\n"), called);
    assert_eq!(with(b"ctorch._utils\n_rebuild_tensor_v2\n", b"ctorch\nper_tensor_affine\n"), called);
    // It keeps marks elsewhere, so it would take another value than this one.
    assert_eq!(with(b"R.", b"(R."), "its pickle is broken: it takes more than it has");
    for (name, line) in [
        ("torch._utils._rebuild_sparse_tensor", b"ctorch._utils\n_rebuild_sparse_tensor\n".as_slice()),
        ("torch._tensor._rebuild_from_type_v2", b"ctorch._tensor\n_rebuild_from_type_v2\n"),
        ("torch.FlatStorage", b"ctorch\nFlatStorage\n"),
        ("torch.distributed.rpc.rref", b"ctorch.distributed.rpc\nrref\n"),
        ("os.system", b"cos\nsystem\n"),
        ("__torchx.M", b"c__torchx\nM\n"),
    ] {
        let expected = format!("its pickle refers to `{name}`, which is not known");
        assert_eq!(with(b"ctorch._utils\n_rebuild_tensor_v2\n", line), expected);
    }
    for name in ["c__torch__\nM\n", "c__torch__.a.b\nM\n", "cbuiltins\ncomplex\n"] {
        let pickle = [b"\x80\x02", name.as_bytes(), b")R."].concat();
        assert_eq!(said(&pickle), "fine", "{name}");
    }
}

#[test]
fn tensors_lie_in_their_bytes() {
    let check = |elements, offset, extents: &[i32], strides: &[i32], expected: &str| {
        assert_eq!(said(&tensor(elements, offset, extents, strides)), expected);
    };
    let beyond = "a tensor in `0` reaches beyond its 8 elements";
    check(8, 0, &[2, 4], &[4, 1], "fine");
    check(8, 7, &[], &[], "fine");
    check(8, 0, &[1 << 20, 8], &[0, 1], "fine");
    check(8, 0, &[0, 1 << 20], &[1, 1], "fine");
    check(8, 1, &[2, 4], &[4, 1], beyond);
    check(8, 0, &[1 << 20], &[1], beyond);
    check(8, 0, &[2], &[-1], beyond);
    check(8, -1, &[2], &[1], beyond);
    check(8, 0, &[-2], &[1], beyond);
    check(8, 0, &[0, -2], &[1, 1], beyond);
    check(8, 0, &[2, 2], &[1], beyond);
    check(8, i32::MAX, &[i32::MAX; 9], &[i32::MAX; 9], beyond);
    check(9, 0, &[2], &[1], "tensor `0` claims 36 bytes, the archive has 32 for it");
    check(8, 0, &[1; 64], &[1; 64], "fine");
    check(8, 0, &[1; 65], &[1; 65], "a tensor in `0` has more than 64 dimensions");
}

#[test]
fn what_is_no_pickle_of_libtorchs_is_refused() {
    let whole = tensor(8, 0, &[2, 4], &[4, 1]);
    for len in 0..whole.len() {
        assert_ne!(said(&whole[..len]), "fine", "{len}");
    }
    assert_eq!(said(b"\x80\x02\x95."), "its pickle has an instruction that is not known, 0x95");
    assert_eq!(said(b"\x80\x04N."), "its pickle is broken: it is not of protocol 2");
    broken(b"t.", "a mark is missing");
    broken(b"R.", "it takes more than it has");
    broken(b"h\x07.", "it refers to what it has not");
    broken(b"NN.", "it ends with more or less than one value");
    broken(b".", "it ends with more or less than one value");
    broken(b"}(Nu.", "a key has no value");
    broken(b"NNa.", "it puts something into what is no list or dictionary");
    broken(b"NNNs.", "it puts something into what is no list or dictionary");
    broken(&[b"c".as_slice(), &[b'x'; 5000], b"\n."].concat(), "a name is too long");
}

#[test]
fn what_is_nested_is_as_deep_as_it_looks() {
    let deep = "its pickle is nested more than 200 deep";
    let said = |body: &[u8]| said(&[b"\x80\x02", body, b"."].concat());
    assert_eq!(said(&[&b"N"[..], &[0x85; 200]].concat()), "fine");
    assert_eq!(said(&[&b"N"[..], &[0x85; 201]].concat()), deep);
    assert_eq!(said(&[vec![b']'; 1 << 20], vec![b'a'; (1 << 20) - 1]].concat()), deep);
    // Through what is remembered: each list in the one after it, and one in itself.
    let changes = "its pickle is broken: it changes what it has remembered";
    assert_eq!(said(b"]q\x00]q\x01h\x00aNa"), changes);
    assert_eq!(said(b"]q\x00h\x00a"), changes);
    assert_eq!(said(b"}q\x00(Nh\x00u"), changes);
    let chain: Vec<u8> = (0..=255u8).flat_map(|at| [b'q', at, b')', b'h', at, 0x86]).collect();
    assert_eq!(said(&[&b"N"[..], &chain].concat()), deep);
    // Each tuple has the one before it twice.
    let doubled = |count| {
        let steps = (0..count).flat_map(|at| [b'q', at, b'h', at, 0x86]);
        said(&[b"N".to_vec(), steps.collect()].concat())
    };
    assert_eq!(doubled(20), "fine");
    assert_eq!(doubled(30), "its pickle has values in values in more than 16777216 ways");
    assert_eq!(
        said(b"Nr\xff\xff\xff\xff"),
        "its pickle is broken: it leaves out numbers for what it remembers"
    );
    let brackets = |count: usize| {
        let kind = format!("{}int{}", "List[".repeat(count), "]".repeat(count));
        let tag = b"ctorch.jit._pickle\nrestore_type_tag\n(]X";
        said(&[tag, &(kind.len() as u32).to_le_bytes()[..], kind.as_bytes(), b"tR"].concat())
    };
    assert_eq!(brackets(200), "fine");
    assert_eq!(brackets(201), deep);
}

/// What each megabyte of a pickle may cost.
#[test]
fn memory_is_a_multiple_of_what_was_allowed() {
    let code_bytes = 4 << 20;
    let body = |byte: u8| [b"\x80\x02".as_slice(), &vec![byte; code_bytes], b"."].concat();
    let many =
        "its pickle has more than 131072 values; the setting `code_bytes` allows one for each 32 bytes";
    for byte in [b'N', b']', b'(', b')'] {
        let pickle = body(byte);
        let (result, most) = counting::peak(|| check(&pickle, Limits::module(code_bytes as u64), |_| None));
        assert_eq!(result.unwrap_err().to_string(), many);
        assert!(most < 3 * code_bytes, "{most}");
    }
    // A text is not copied, however often it is referred to.
    let text = vec![b'x'; 1 << 20];
    let repeated = b"h\x00".repeat(10_000);
    let pickle =
        [b"\x80\x02(X".as_slice(), &(1u32 << 20).to_le_bytes(), &text, b"q\x00", &repeated, b"t."].concat();
    let (result, most) = counting::peak(|| check(&pickle, Limits::module(code_bytes as u64), |_| None));
    result.unwrap();
    assert!(most < 2 << 20, "{most}");
}

/// Pickles with bytes changed at random, and pieces of them in other places.
#[test]
fn whatever_is_in_a_pickle_it_is_read_in_bounds() {
    let seeds = [
        tensor(8, 0, &[2, 4], &[4, 1]),
        torchscript::mlp(&[2, 4, 2]).pickle(),
        b"\x80\x02(]q\x00(K\x01M\x02\x00h\x00e}X\x01\0\0\0aNs\x8a\x08\0\0\0\0\0\0\0\0G\0\0\0\0\0\0\0\0l."
            .to_vec(),
    ];
    let mut random = crate::random::Random::seeded(7);
    for round in 0..20_000 {
        let pickle = random.mutation(&seeds);
        let (_, most) = counting::peak(|| check(&pickle, Limits::module(1 << 16), size));
        assert!(most < 1 << 20, "round {round} takes {most} bytes: {pickle:?}");
    }
}
