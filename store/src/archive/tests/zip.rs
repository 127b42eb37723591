//! zip: what is refused of what its directory, its end and its entries can say.

use super::*;

/// An entry, with all that it says in the directory and in its own header.
#[derive(Clone)]
pub(in crate::archive) struct Member {
    pub(super) name: Vec<u8>,
    pub(super) local_name: Vec<u8>,
    pub(super) flags: u16,
    pub(super) method: u16,
    pub(super) checksum: u32,
    pub(super) size: u32,
    pub(super) packed: u32,
    pub(super) mode: u16,
    pub(super) extra: Vec<u8>,
    pub(super) data: Vec<u8>,
    /// Where it says that its header is, if not where it is.
    pub(super) offset: Option<u32>,
}

impl Member {
    pub(in crate::archive) fn stored(name: &str, contents: &[u8]) -> Self {
        Self {
            name: name.into(),
            local_name: name.into(),
            flags: 0,
            method: 0,
            checksum: crc(contents),
            size: contents.len() as u32,
            packed: contents.len() as u32,
            mode: 0,
            extra: Vec::new(),
            data: contents.to_vec(),
            offset: None,
        }
    }

    fn deflated(name: &str, contents: &[u8]) -> Self {
        let data = deflated(contents, 1);
        Self { method: 8, packed: data.len() as u32, data, ..Self::stored(name, contents) }
    }

    /// So many MiB of zeros, deflated.
    pub(super) fn zeros(name: &str, mib: usize) -> Self {
        let data = deflated(&[0; 1 << 20], mib);
        Self { method: 8, packed: data.len() as u32, data, ..Self::stored(name, &vec![0; mib << 20]) }
    }

    fn header(&self) -> Vec<u8> {
        let mut header = b"PK\x03\x04\x14\0".to_vec();
        header.extend([self.flags, self.method, 0, 0].map(u16::to_le_bytes).concat());
        header.extend([self.checksum, self.packed, self.size].map(u32::to_le_bytes).concat());
        header.extend([self.local_name.len() as u16, 0].map(u16::to_le_bytes).concat());
        [header, self.local_name.clone()].concat()
    }

    fn listed(&self, offset: u32) -> Vec<u8> {
        let mut entry = b"PK\x01\x02\x14\x03\x14\0".to_vec();
        entry.extend([self.flags, self.method, 0, 0].map(u16::to_le_bytes).concat());
        entry.extend([self.checksum, self.packed, self.size].map(u32::to_le_bytes).concat());
        let lengths = [self.name.len() as u16, self.extra.len() as u16, 0, 0, 0, 0, self.mode];
        entry.extend(lengths.map(u16::to_le_bytes).concat());
        entry.extend(self.offset.unwrap_or(offset).to_le_bytes());
        [entry, self.name.clone(), self.extra.clone()].concat()
    }
}

pub(in crate::archive) fn of(members: &[Member]) -> Vec<u8> {
    let (mut archive, mut directory) = (Vec::new(), Vec::new());
    for member in members {
        directory.extend(member.listed(archive.len() as u32));
        archive.extend(member.header());
        archive.extend(&member.data);
    }
    let count = members.len() as u16;
    let end = end(count, directory.len() as u32, archive.len() as u32, b"");
    [archive, directory, end].concat()
}

fn end(count: u16, size: u32, start: u32, comment: &[u8]) -> Vec<u8> {
    let mut end = b"PK\x05\x06\0\0\0\0".to_vec();
    end.extend([count, count].map(u16::to_le_bytes).concat());
    end.extend([size, start].map(u32::to_le_bytes).concat());
    end.extend((comment.len() as u16).to_le_bytes());
    [end, comment.to_vec()].concat()
}

/// With zip64's records in place of the last record's numbers.
fn with_zip64(archive: &[u8], count: u64, extra_size: u64) -> Vec<u8> {
    let (body, end) = archive.split_at(archive.len() - 22);
    let [size, start] =
        [12, 16].map(|at| u64::from(u32::from_le_bytes(end[at..at + 4].try_into().expect("four"))));
    let mut record = b"PK\x06\x06".to_vec();
    record.extend((44 + extra_size).to_le_bytes());
    record.extend([0; 12]);
    record.extend([count, count, size, start].map(u64::to_le_bytes).concat());
    let mut locator = b"PK\x06\x07\0\0\0\0".to_vec();
    locator.extend((body.len() as u64).to_le_bytes());
    locator.extend(1_u32.to_le_bytes());
    [body, &record, &locator, &self::end(u16::MAX, u32::MAX, u32::MAX, b"")].concat()
}

fn check(members: &[Member]) -> Result<Files, ArchiveError> {
    open(ArchiveKind::Zip, &of(members))
}

#[track_caller]
fn damage(archive: &[u8], expected: Damage) {
    match open(ArchiveKind::Zip, archive) {
        Err(ArchiveError::Damaged { damage, .. }) => assert_eq!(damage, expected),
        other => panic!("{expected:?} expected, {other:?} came"),
    }
}

#[test]
fn folders_are_passed_over_and_modes_ignored() {
    let folder = Member { mode: 0o40755, ..Member::stored("a/", b"") };
    let file = Member { mode: 0o106755, ..Member::deflated("a/b", b"contents") };
    let files = check(&[folder.clone(), folder.clone(), file]).expect("unpacks");
    assert_eq!(files, owned(&[("a/b", b"contents")]));
    damage(&of(&[Member::stored("a/", b"contents")]), Damage::FolderContents);
    for half in [Member { mode: 0o100644, ..folder }, Member { mode: 0o40755, ..Member::stored("a", b"") }] {
        assert!(matches!(check(&[half]), Err(ArchiveError::Kind { kind: MemberKind::FolderByHalf, .. })));
    }
}

#[test]
fn neither_links_nor_devices_are_taken() {
    for (mode, expected) in [
        (0o120777, MemberKind::Symlink),
        (0o020644, MemberKind::Device),
        (0o060644, MemberKind::Device),
        (0o010644, MemberKind::Fifo),
        (0o140644, MemberKind::Socket),
        (0o110644, MemberKind::Other(9)),
    ] {
        match check(&[Member { mode, ..Member::stored("bad", b"target") }]) {
            Err(ArchiveError::Kind { kind, .. }) => assert_eq!(kind, expected),
            other => panic!("{expected:?} expected, {other:?} came"),
        }
    }
}

#[test]
fn encrypted_entries_are_refused() {
    for flags in [1, 1 << 6 | 1, 1 << 13] {
        let error = check(&[Member { flags, ..Member::stored("secret", b"x") }]).expect_err("refused");
        assert_eq!(error.to_string(), "member `secret` is encrypted");
    }
}

#[test]
fn other_methods_are_refused_by_name() {
    for (method, name) in
        [(9, "deflate64"), (12, "bzip2"), (14, "lzma"), (93, "zstd"), (95, "xz"), (77, "method 77")]
    {
        let error = check(&[Member { method, ..Member::stored("a", b"x") }]).expect_err("refused");
        assert!(error.to_string().starts_with(&format!("member `a` is compressed with {name}")), "{error}");
    }
}

#[test]
fn checksums_are_checked() {
    for member in
        [Member::stored("a", b"contents"), Member::deflated("a", b"contents"), Member::stored("a", b"")]
    {
        let error =
            check(&[Member { checksum: member.checksum ^ 1, ..member }]).expect_err("another checksum");
        assert!(matches!(error, ArchiveError::Checksum { .. }), "{error}");
    }
}

#[test]
fn sizes_are_checked() {
    for member in [Member::stored("a", b"contents"), Member::deflated("a", b"contents")] {
        for size in [0, 7, 9, u32::MAX] {
            let error = check(&[Member { size, ..member.clone() }]).expect_err("another size");
            assert!(matches!(error, ArchiveError::Size { .. }), "{size}: {error}");
        }
    }
    let member = Member::deflated("a", b"contents");
    let short = check(&[Member { packed: member.packed - 1, ..member.clone() }]).expect_err("cut");
    assert!(matches!(short, ArchiveError::Truncated { .. }), "{short}");
    // Else a lie about it would make room for a ratio.
    let data = [&member.data[..], b"behind"].concat();
    damage(&of(&[Member { packed: data.len() as u32, data, ..member }]), Damage::Tail);
}

#[test]
fn an_entry_and_its_header_agree() {
    let member = Member::stored("a", b"contents");
    damage(&of(&[Member { local_name: b"b".to_vec(), ..member.clone() }]), Damage::LocalHeader);
    damage(&of(&[Member { local_name: b"ab".to_vec(), ..member.clone() }]), Damage::LocalHeader);
    for at in [0, 6, 8] {
        let mut archive = of(std::slice::from_ref(&member));
        archive[at] ^= 1;
        damage(&archive, Damage::LocalHeader);
    }
    let unicode = |name: &[u8]| {
        let length = (name.len() + 5) as u16;
        [&b"\x75\x70"[..], &length.to_le_bytes(), b"\x01\0\0\0\0", name].concat()
    };
    assert!(check(&[Member { extra: unicode(b"a"), ..member.clone() }]).is_ok());
    damage(&of(&[Member { extra: unicode(b"b"), ..member.clone() }]), Damage::Directory);
    damage(&of(&[Member { extra: b"\x01\0\x09\0".to_vec(), ..member.clone() }]), Damage::Directory);
    // Zeros pad; anything else is a field that is cut off.
    assert!(check(&[Member { extra: vec![0; 3], ..member.clone() }]).is_ok());
    damage(&of(&[Member { extra: b"\x01\0\0".to_vec(), ..member }]), Damage::Directory);
}

/// The two ways of Fifield's: all entries are of one header, or each header is within the data of the one before.
#[test]
fn entries_that_share_bytes_are_refused_before_one_is_unpacked() {
    let kernel = Member::zeros("0", 1);
    let named = |number: usize| Member { name: number.to_string().into(), ..kernel.clone() };
    let mut same = vec![kernel.clone()];
    same.extend((1..100).map(|number| Member { offset: Some(0), data: Vec::new(), ..named(number) }));
    let inner = Member::stored("inner", &[b'x'; 100]);
    let data = [inner.header(), inner.data.clone()].concat();
    let quoting =
        [Member::stored("outer", &data), Member { offset: Some(30 + 5), data: Vec::new(), ..inner }];
    for archive in [of(&same), of(&quoting)] {
        let limits = ArchiveLimits::default();
        let result =
            unpack(ArchiveKind::Zip, Cursor::new(archive), &limits, &mut |_, _| panic!("handed over"));
        assert!(matches!(result, Err(ArchiveError::Damaged { damage: Damage::Overlap, .. })), "{result:?}");
    }
    let member = Member::stored("a", b"contents");
    damage(&of(&[Member { packed: 9, size: 9, ..member.clone() }]), Damage::Overlap);
    damage(&of(&[Member { offset: Some(u32::MAX - 1), ..member }]), Damage::Overlap);
}

#[test]
fn the_last_end_record_is_the_end() {
    let archive = of(&[Member::stored("a", b"contents")]);
    let (body, record) = archive.split_at(archive.len() - 22);
    let size = 46 + 1;
    let start = body.len() as u32 - size;
    let commented = |comment: &[u8]| [body, &end(1, size, start, comment)].concat();
    assert!(open(ArchiveKind::Zip, &commented(b"a comment")).is_ok());
    assert!(open(ArchiveKind::Zip, &commented(&vec![b'c'; 65_535])).is_ok());
    // Another end within the comment, which other programs would find.
    damage(&commented(&[b"hidden", record, b"more"].concat()), Damage::EndRecord);
    damage(&commented(record), Damage::Directory);
    damage(&[&archive[..], b"behind"].concat(), Damage::EndRecord);
    damage(&[&b"before"[..], &archive].concat(), Damage::Directory);
    damage(&[body, &end(1, size - 1, start, b"")].concat(), Damage::Directory);
    damage(&[body, &end(0, size, start, b"")].concat(), Damage::Directory);
    damage(&[body, &end(2, size, start, b"")].concat(), Damage::Directory);
    let mut part = archive.clone();
    part[body.len() + 4] = 1;
    damage(&part, Damage::Parts);
    damage(b"", Damage::EndRecord);
    damage(b"PK\x05\x06", Damage::EndRecord);
}

#[test]
fn a_number_of_entries_is_held_against_the_limit_before_they_are_read() {
    let archive = of(&[Member::stored("a", b"contents")]);
    for count in [10_001, 1 << 40, u64::MAX] {
        let error = open(ArchiveKind::Zip, &with_zip64(&archive, count, 0)).expect_err("too many");
        assert!(matches!(error, ArchiveError::Entries { limit: 10_000 }), "{error}");
    }
    damage(&with_zip64(&archive, 2, 0), Damage::Directory);
    damage(&with_zip64(&archive, 1, 1), Damage::Zip64);
    assert_eq!(
        open(ArchiveKind::Zip, &with_zip64(&archive, 1, 0)).expect("unpacks"),
        owned(&[("a", b"contents")])
    );
}

#[test]
fn zip64_sizes_are_read() {
    let extra = |values: &[u64]| {
        let values = values.iter().flat_map(|value| value.to_le_bytes()).collect::<Vec<_>>();
        [&b"\x01\0"[..], &(values.len() as u16).to_le_bytes(), &values].concat()
    };
    let member =
        Member { size: u32::MAX, packed: u32::MAX, offset: Some(u32::MAX), ..Member::stored("a", b"xyz") };
    let files = check(&[Member { extra: extra(&[3, 3, 0]), ..member.clone() }]).expect("unpacks");
    assert_eq!(files, owned(&[("a", b"xyz")]));
    damage(&of(&[Member { extra: extra(&[3, 3]), ..member.clone() }]), Damage::Zip64);
    damage(&of(&[Member { extra: extra(&[3, 3, u64::MAX]), ..member.clone() }]), Damage::Overlap);
    damage(&of(&[Member { extra: extra(&[3, u64::MAX, 0]), ..member }]), Damage::Overlap);

    use ::zip::write::SimpleFileOptions;
    let mut writer = ::zip::ZipWriter::new(Cursor::new(Vec::new()));
    writer.start_file("large", SimpleFileOptions::default().large_file(true)).expect("a name");
    writer.write_all(b"contents").expect("written");
    let archive = writer.finish().expect("written").into_inner();
    assert_eq!(open(ArchiveKind::Zip, &archive).expect("unpacks"), owned(&[("large", b"contents")]));
}

#[test]
fn bombs_are_stopped_one_by_one_and_together() {
    let bomb = of(&[Member::zeros("zeros", 64)]);
    let error = open(ArchiveKind::Zip, &bomb).expect_err("too much");
    assert!(matches!(error, ArchiveError::MemberRatio { limit: 200, .. }), "{error}");
    // Each of these is below the floor.
    let member = Member::zeros("0", 12);
    let several =
        [b'0', b'1'].map(|name| Member { name: vec![name], local_name: vec![name], ..member.clone() });
    assert!(check(&several[..1]).is_ok());
    let error = check(&several).expect_err("too much together");
    assert!(matches!(error, ArchiveError::Ratio { .. }), "{error}");
    // What it says of its size does not help it.
    let liar = Member { size: 10, ..Member::zeros("zeros", 1) };
    assert!(matches!(check(&[liar]), Err(ArchiveError::Size { declared: 10, .. })));
}

#[test]
fn names_are_utf8_whatever_the_flag_says() {
    for flags in [0, 1 << 11] {
        let files = check(&[Member { flags, ..Member::stored("é", b"x") }]).expect("unpacks");
        assert_eq!(files, owned(&[("é", b"x")]));
    }
    let name = b"caf\x82".to_vec();
    let error = check(&[Member { local_name: name.clone(), name, ..Member::stored("", b"x") }])
        .expect_err("not UTF-8");
    assert_eq!(error.to_string(), "member `caf\\x82` has a name that is not UTF-8");
    let long = "n/".repeat(30_000);
    assert!(matches!(check(&[Member::stored(&long, b"")]), Err(ArchiveError::Path { .. })));
}
