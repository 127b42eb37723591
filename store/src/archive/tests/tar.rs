//! tar: its ways of writing names and sizes, and what is refused.

use ::tar::{Builder, EntryType, Header, HeaderMode};

use super::*;
use crate::archive::RECORD_BYTES;

/// A header and what follows it, with its padding.
pub(in crate::archive) type Blocks = Vec<u8>;

/// A GNU header with any bytes for a name, and contents.
pub(super) fn member(name: &[u8], kind: u8, contents: &[u8]) -> Blocks {
    let mut header = Header::new_gnu();
    header.as_old_mut().name[..name.len()].copy_from_slice(name);
    header.set_entry_type(EntryType::new(kind));
    header.set_size(contents.len() as u64);
    header.set_mode(0o644);
    header.set_cksum();
    with(header, contents)
}

pub(super) fn with(header: Header, contents: &[u8]) -> Blocks {
    let mut blocks = header.as_bytes().to_vec();
    blocks.extend(contents);
    blocks.resize(blocks.len().next_multiple_of(512), 0);
    blocks
}

pub(in crate::archive) fn file(name: &str, contents: &[u8]) -> Blocks {
    member(name.as_bytes(), b'0', contents)
}

/// These, and the end mark.
pub(in crate::archive) fn of(members: &[Blocks]) -> Vec<u8> {
    let mut archive = members.concat();
    archive.resize(archive.len() + 1024, 0);
    archive
}

fn record(key: &str, value: &[u8]) -> Vec<u8> {
    let rest = key.len() + value.len() + 3;
    let length =
        (1..).map(|digits| rest + digits).find(|all| all.to_string().len() + rest == *all).expect("a length");
    [format!("{length} {key}=").as_bytes(), value, b"\n"].concat()
}

fn pax(records: &[(&str, &[u8])]) -> Blocks {
    let records: Vec<_> = records.iter().map(|(key, value)| record(key, value)).collect();
    member(b"PaxHeaders/x", b'x', &records.concat())
}

fn check(members: &[Blocks]) -> Result<Files, ArchiveError> {
    open(ArchiveKind::Tar, &of(members))
}

#[track_caller]
fn damage(members: &[Blocks], expected: Damage) {
    match check(members) {
        Err(ArchiveError::Damaged { damage, .. }) => assert_eq!(damage, expected),
        other => panic!("{expected:?} expected, {other:?} came"),
    }
}

#[test]
fn what_tar_writes_of_a_folder_is_taken() {
    let folder = tempfile::tempdir().expect("a folder");
    std::fs::create_dir_all(folder.path().join("a/b")).expect("a folder");
    std::fs::write(folder.path().join("a/b/weights.bin"), b"weights").expect("a file");
    for mode in [HeaderMode::Complete, HeaderMode::Deterministic] {
        let mut builder = Builder::new(Vec::new());
        builder.mode(mode);
        builder.append_dir_all(".", folder.path()).expect("written");
        let archive = builder.into_inner().expect("written");
        let files = open(ArchiveKind::Tar, &archive).expect("unpacks");
        assert_eq!(files, owned(&[("a/b/weights.bin", b"weights")]));
    }
    let dotted =
        [member(b"./", b'5', b""), member(b"./a/", b'5', b""), file("./a/x", b"1"), file("./y", b"2")];
    assert_eq!(check(&dotted).expect("unpacks"), owned(&[("a/x", b"1"), ("y", b"2")]));
}

#[test]
fn every_sort_of_header_is_read() {
    for mut header in [Header::new_old(), Header::new_ustar(), Header::new_gnu()] {
        header.set_path("a/b").expect("a path");
        header.set_size(1);
        header.set_cksum();
        assert_eq!(check(&[with(header, b"x")]).expect("unpacks"), owned(&[("a/b", b"x")]));
    }
    let mut split = Header::new_ustar();
    let long = format!("{}/{}", "p".repeat(140), "n".repeat(90));
    split.set_path(&long).expect("fits in a prefix and a name");
    split.set_size(0);
    split.set_cksum();
    assert_eq!(check(&[with(split, b"")]).expect("unpacks"), owned(&[(&long, b"")]));
}

#[test]
fn long_names_work_both_ways() {
    let long = format!("{}/{}", "d".repeat(250), "f".repeat(250));
    let gnu = [
        member(b"././@LongLink", b'L', format!("{long}\0").as_bytes()),
        file("cut", b"x"),
        file("next", b"y"),
    ];
    let pax = [pax(&[("mtime", b"1.5"), ("path", long.as_bytes())]), file("cut", b"x"), file("next", b"y")];
    for members in [gnu, pax] {
        assert_eq!(check(&members).expect("unpacks"), owned(&[(&long, b"x"), ("next", b"y")]));
    }
    for name in ["/abs", "../up"] {
        let gnu = [member(b"././@LongLink", b'L', name.as_bytes()), file("cut", b"x")];
        assert!(matches!(check(&gnu), Err(ArchiveError::Path { .. })));
        let pax = [self::pax(&[("path", name.as_bytes())]), file("cut", b"x")];
        assert!(matches!(check(&pax), Err(ArchiveError::Path { .. })));
    }
}

#[test]
fn extended_headers_are_those_of_a_format_that_has_them() {
    for kind in [b'L', b'K', b'x', b'g'] {
        let mut header = Header::new_old();
        header.set_path("././@LongLink").expect("a path");
        header.set_entry_type(EntryType::new(kind));
        header.set_size(2);
        header.set_cksum();
        damage(&[with(header, b"a\0"), file("cut", b"x")], Damage::Extension);
    }
}

#[test]
fn a_size_from_pax_goes_before_the_headers() {
    // As Python writes it for files from 8 GiB on: nothing in the header.
    let mut header = Header::new_ustar();
    header.set_path("large").expect("a path");
    header.set_size(0);
    header.set_cksum();
    let mut contents = with(header, &[b'x'; 700]);
    contents.extend(file("next", b"y"));
    let files = check(&[pax(&[("size", b"700")]), contents]).expect("unpacks");
    assert_eq!(files, owned(&[("large", &[b'x'; 700]), ("next", b"y")]));
    // A member that says it has more than there is ends the archive too early.
    let error = check(&[pax(&[("size", b"70000")]), file("a", b"x")]).expect_err("cut");
    assert!(matches!(error, ArchiveError::Truncated { .. }), "{error}");
    // Sizes that no archive holds are refused before the sink is asked for anything.
    let size = u64::MAX.to_string();
    let error = check(&[pax(&[("size", size.as_bytes())]), file("a", b"x")]).expect_err("large");
    assert!(matches!(error, ArchiveError::FileBytes { .. }), "{error}");
    let endless = ArchiveLimits { entries: u64::MAX, file_bytes: u64::MAX, bytes: u64::MAX, ratio: u64::MAX };
    let archive = of(&[pax(&[("size", size.as_bytes())]), file("a", b"x")]);
    let error = open_within(ArchiveKind::Tar, &archive, &endless).expect_err("cut");
    assert!(matches!(error, ArchiveError::Truncated { .. }), "{error}");
}

#[test]
fn a_binary_size_has_to_fit() {
    let sized = |field: [u8; 12]| {
        let mut header = Header::new_gnu();
        header.set_path("a").expect("a path");
        header.as_old_mut().size = field;
        header.set_cksum();
        with(header, b"x")
    };
    assert_eq!(check(&[sized(*b"\x80\0\0\0\0\0\0\0\0\0\0\x01")]).expect("unpacks"), owned(&[("a", b"x")]));
    for field in [
        *b"\x80\0\0\x01\0\0\0\0\0\0\0\x01",
        [0xff; 12],
        *b"\x81\0\0\0\0\0\0\0\0\0\0\x01",
        *b"99999999999\0",
        *b"-0000000001\0",
        *b"+0000000001\0",
    ] {
        damage(&[sized(field)], Damage::SizeField);
    }
}

#[test]
fn records_are_bounded_before_they_are_read() {
    for kind in [b'L', b'K', b'x', b'g'] {
        let mut header = Header::new_gnu();
        header.set_entry_type(EntryType::new(kind));
        header.set_size(1 << 30);
        header.set_cksum();
        damage(&[with(header, b"")], Damage::LongRecord { limit: RECORD_BYTES });
    }
    let most = record("comment", &vec![b'c'; RECORD_BYTES as usize - 17]);
    assert_eq!(most.len() as u64, RECORD_BYTES);
    let archive = of(&[member(b"x", b'x', &most), file("a", b"x")]);
    assert!(open(ArchiveKind::Tar, &archive).is_ok());
    // They are a part of what comes out, so that a chain of them is bounded as well.
    let limits = ArchiveLimits { bytes: RECORD_BYTES, ..ArchiveLimits::default() };
    assert!(matches!(open_within(ArchiveKind::Tar, &archive, &limits), Err(ArchiveError::Bytes { .. })));
    let globals: Vec<_> = (0..5).map(|_| member(b"g", b'g', b"")).collect();
    let limits = ArchiveLimits { entries: 4, ..ArchiveLimits::default() };
    let error = open_within(ArchiveKind::Tar, &of(&globals), &limits).expect_err("too many");
    assert!(matches!(error, ArchiveError::Entries { limit: 4 }), "{error}");
}

#[test]
fn records_that_can_be_read_in_two_ways_are_refused() {
    let name = || member(b"././@LongLink", b'L', b"long\0");
    damage(&[name(), name(), file("a", b"")], Damage::Contradiction);
    damage(&[pax(&[("path", b"a")]), pax(&[("path", b"b")]), file("a", b"")], Damage::Contradiction);
    damage(&[pax(&[("path", b"a"), ("path", b"b")]), file("a", b"")], Damage::Contradiction);
    damage(&[name(), pax(&[("path", b"a")]), file("a", b"")], Damage::Contradiction);
    damage(&[name()], Damage::Dangling);
    damage(&[pax(&[("size", b"1")])], Damage::Dangling);
    damage(&[name(), member(b"g", b'g', b""), file("a", b"")], Damage::Dangling);
    damage(&[member(b"x", b'x', b"\n9 path=b\n"), file("a", b"")], Damage::Pax);
    damage(&[member(b"g", b'g', &record("path", b"b")), file("a", b"")], Damage::Global);
    damage(&[member(b"g", b'g', &record("size", b"0")), file("a", b"")], Damage::Global);
    // What archives of Git begin with.
    let commit = member(b"pax_global_header", b'g', &record("comment", b"0123456789abcdef"));
    assert_eq!(check(&[commit, file("a", b"x")]).expect("unpacks"), owned(&[("a", b"x")]));
}

#[test]
fn neither_links_nor_devices_are_taken() {
    for (kind, expected) in [
        (b'1', MemberKind::HardLink),
        (b'2', MemberKind::Symlink),
        (b'3', MemberKind::Device),
        (b'4', MemberKind::Device),
        (b'6', MemberKind::Fifo),
        (b'7', MemberKind::Other(b'7')),
        (b'S', MemberKind::Sparse),
        (b'V', MemberKind::Other(b'V')),
        (b'M', MemberKind::Other(b'M')),
        (0xff, MemberKind::Other(0xff)),
    ] {
        match check(&[member(b"bad/one", kind, b"")]) {
            Err(ArchiveError::Kind { member, kind }) => {
                assert_eq!((member.to_string().as_str(), kind), ("bad/one", expected));
            }
            other => panic!("{expected:?} expected, {other:?} came"),
        }
    }
    let link = [member(b"././@LongLink", b'K', b"target\0"), member(b"a", b'2', b"")];
    assert!(matches!(check(&link), Err(ArchiveError::Kind { kind: MemberKind::Symlink, .. })));
    for key in ["GNU.sparse.map", "GNU.sparse.major", "GNU.sparse.name"] {
        let sparse = [pax(&[(key, b"1")]), file("a", b"")];
        assert!(matches!(check(&sparse), Err(ArchiveError::Kind { kind: MemberKind::Sparse, .. })), "{key}");
    }
}

#[test]
fn folders_are_folders() {
    damage(&[member(b"a/", b'5', b"contents")], Damage::FolderContents);
    assert!(matches!(check(&[member(b"../a/", b'5', b"")]), Err(ArchiveError::Path { .. })));
    assert!(matches!(check(&[member(b"a/", b'0', b"")]), Err(ArchiveError::Path { .. })));
    assert!(matches!(check(&[member(b"a\xff", b'0', b"")]), Err(ArchiveError::Encoding { .. })));
    assert_eq!(check(&[member(b"a", b'5', b""), file("a/b", b"")]).expect("unpacks"), owned(&[("a/b", b"")]));
}

#[test]
fn the_end_is_two_blocks_of_zeros_and_nothing_else_behind() {
    let members = [file("a", b"x")].concat();
    let ended = |end: &[u8]| open(ArchiveKind::Tar, &[&members, end].concat());
    assert!(ended(&[0; 1024]).is_ok());
    assert!(ended(&[0; 10_240]).is_ok(), "up to a round size");
    assert!(ended(&[0; 1025]).is_ok());
    assert!(matches!(ended(&[]), Err(ArchiveError::NoEnd)));
    assert!(matches!(ended(&[0; 512]), Err(ArchiveError::NoEnd)));
    for end in [
        [&[0; 1024][..], &file("b", b"")].concat(),
        [&[0; 2000][..], b"x"].concat(),
        [&[0; 512][..], &file("b", b""), &[0; 1024]].concat(),
    ] {
        let error = ended(&end).expect_err("more");
        assert!(matches!(error, ArchiveError::Damaged { damage: Damage::Trailing, .. }), "{error}");
    }
}

#[test]
fn a_header_has_its_checksum() {
    let mut archive = of(&[file("a", b"x")]);
    archive[0] = b'b';
    let error = open(ArchiveKind::Tar, &archive).expect_err("changed");
    assert_eq!(
        error.to_string(),
        "the archive is damaged at byte 512: there is no header of tar, or its checksum is wrong"
    );
}
