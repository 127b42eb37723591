//! gzip around tar.

use super::*;

const FILES: [(&str, &[u8]); 2] = [("a", b"first"), ("b", b"second")];

#[test]
fn several_members_are_one_archive() {
    let tar = archive(ArchiveKind::Tar, &FILES);
    for cut in [0, 1, 512, 700, tar.len()] {
        let members = [gz(&tar[..cut]), gz(&tar[cut..])].concat();
        assert_eq!(open(ArchiveKind::TarGz, &members).expect("unpacks"), owned(&FILES), "{cut}");
    }
}

#[test]
fn what_is_behind_the_last_member_is_refused() {
    let whole = archive(ArchiveKind::TarGz, &FILES);
    for behind in [&b"\0"[..], b"garbage behind the end", b"\x1f\x8b", &[0; 512]] {
        assert!(open(ArchiveKind::TarGz, &[&whole, behind].concat()).is_err(), "{behind:?}");
    }
    let error = open(ArchiveKind::TarGz, &[whole, gz(&archive(ArchiveKind::Tar, &FILES))].concat());
    assert!(matches!(error, Err(ArchiveError::Damaged { damage: Damage::Trailing, .. })), "another archive");
}

#[test]
fn checksum_and_length_are_checked() {
    let whole = archive(ArchiveKind::TarGz, &FILES);
    for back in 1..=8 {
        let mut changed = whole.clone();
        let at = changed.len() - back;
        changed[at] ^= 1;
        let error = open(ArchiveKind::TarGz, &changed).expect_err("changed");
        assert!(matches!(error, ArchiveError::Corrupt { .. }), "{error}");
    }
}

#[test]
fn a_bomb_is_stopped_by_what_it_unpacks_to() {
    let error = open(ArchiveKind::TarGz, &zeros_gz(64)).expect_err("too much");
    let ArchiveError::Ratio { unpacked, packed, limit: 200 } = error else { panic!("{error}") };
    assert!(unpacked > 200 * packed && unpacked < 32 << 20, "{unpacked} of {packed}");
    // Within a member and behind the end alike.
    let behind = [archive(ArchiveKind::TarGz, &FILES), gz(&[0; 1 << 20]).repeat(64)].concat();
    let error = open(ArchiveKind::TarGz, &behind).expect_err("too much");
    assert!(matches!(error, ArchiveError::Ratio { .. }), "{error}");
}

#[test]
fn little_content_may_compress_well() {
    let archive = zeros_gz(15);
    assert!(archive.len() * 200 < 15 << 20);
    assert_eq!(open(ArchiveKind::TarGz, &archive).expect("unpacks")[0].1.len(), 15 << 20);
}
