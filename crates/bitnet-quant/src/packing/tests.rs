//! Byte orders are tested against bytes computed by hand: a round trip alone cannot see two mistakes that agree.

use proptest::prelude::*;

use super::*;

const FORMATS: [TernaryFormat; 7] = [
    TernaryFormat::I2s(I2sLayout::Block128),
    TernaryFormat::I2s(I2sLayout::Block64),
    TernaryFormat::I2s(I2sLayout::Row4),
    TernaryFormat::Tq1_0,
    TernaryFormat::Tq2_0,
    TernaryFormat::Q2_0,
    TernaryFormat::HfU8,
];

/// One in f16.
const ONE: [u8; 2] = [0x00, 0x3c];

/// A matrix of zeros (code 1) with the given codes at the given places.
fn codes_with(n: usize, set: &[(usize, u8)]) -> Vec<u8> {
    let mut codes = vec![1; n];
    for &(at, code) in set {
        codes[at] = code;
    }
    codes
}

fn pack(format: TernaryFormat, codes: &[u8], rows: usize, cols: usize) -> Vec<u8> {
    let mut bytes = Vec::new();
    format.pack(codes, rows, cols, 1.0, &mut bytes).unwrap();
    bytes
}

fn unpack(
    format: TernaryFormat,
    data: &[u8],
    rows: usize,
    cols: usize,
) -> Result<(Vec<u8>, Vec<f32>), PackError> {
    let mut codes = vec![9; rows * cols];
    let mut scales = vec![9.0; format.block().map_or(0, |block| rows * cols / block)];
    format.unpack_rows(data, rows, cols, 0..rows, &mut codes, &mut scales)?;
    Ok((codes, scales))
}

#[track_caller]
fn assert_bytes(format: TernaryFormat, rows: usize, cols: usize, codes: &[u8], bytes: &[u8]) {
    assert_eq!(pack(format, codes, rows, cols), bytes);
    assert_eq!(unpack(format, bytes, rows, cols).unwrap().0, codes);
}

#[test]
fn i2_s_block128_puts_element_j_in_byte_j_mod_32_from_the_top_bits() {
    let codes = codes_with(256, &[(0, 2), (32, 0), (64, 2), (96, 0), (33, 2), (127, 2), (128, 0)]);
    let mut bytes = vec![0x55; 64];
    bytes[0] = 0b10_00_10_00;
    bytes[1] = 0b01_10_01_01;
    bytes[31] = 0b01_01_01_10;
    bytes[32] = 0b00_01_01_01;
    bytes.extend(1f32.to_le_bytes());
    bytes.extend([0; 28]);
    assert_bytes(TernaryFormat::I2s(I2sLayout::Block128), 1, 256, &codes, &bytes);
    assert_bytes(TernaryFormat::I2s(I2sLayout::Block128), 2, 128, &codes, &bytes);
}

#[test]
fn i2_s_block64_puts_element_j_in_byte_j_mod_16_from_the_top_bits() {
    let codes = codes_with(128, &[(0, 2), (16, 0), (32, 2), (48, 0), (17, 2), (63, 2), (64, 0)]);
    let mut bytes = vec![0x55; 32];
    bytes[0] = 0b10_00_10_00;
    bytes[1] = 0b01_10_01_01;
    bytes[15] = 0b01_01_01_10;
    bytes[16] = 0b00_01_01_01;
    bytes.extend(1f32.to_le_bytes());
    bytes.extend([0; 28]);
    assert_bytes(TernaryFormat::I2s(I2sLayout::Block64), 2, 64, &codes, &bytes);
}

#[test]
fn i2_s_row4_puts_four_rows_in_a_byte_the_first_on_top() {
    let codes = [
        [2, 0, 1], //
        [1, 2, 0],
        [0, 1, 2],
        [2, 2, 2],
        [0, 0, 0],
        [1, 1, 1],
        [2, 2, 2],
        [0, 1, 2],
    ];
    let mut bytes =
        vec![0b10_01_00_10, 0b00_10_01_10, 0b01_00_10_10, 0b00_01_10_00, 0b00_01_10_01, 0b00_01_10_10];
    bytes.extend(1f32.to_le_bytes());
    bytes.extend([0; 28]);
    assert_bytes(TernaryFormat::I2s(I2sLayout::Row4), 8, 3, codes.as_flattened(), &bytes);
}

#[test]
fn tq2_0_puts_element_j_in_byte_j_mod_32_from_the_bottom_bits_and_the_scale_last() {
    let codes = codes_with(256, &[(0, 2), (32, 0), (64, 2), (96, 0), (33, 2), (127, 2), (128, 0), (160, 2)]);
    let mut bytes = vec![0x55; 64];
    bytes[0] = 0b00_10_00_10;
    bytes[1] = 0b01_01_10_01;
    bytes[31] = 0b10_01_01_01;
    bytes[32] = 0b01_01_10_00;
    bytes.extend(ONE);
    assert_bytes(TernaryFormat::Tq2_0, 1, 256, &codes, &bytes);
}

#[test]
fn tq1_0_puts_the_first_digit_in_the_most_significant_place() {
    // A byte of five codes 1 is ceil(121 * 256 / 243) = 128; four of them and no fifth, ceil(120 * 256 / 243) = 127.
    let mut bytes = vec![128; 48];
    bytes.extend([127; 4]);
    bytes.extend(ONE);
    assert_bytes(TernaryFormat::Tq1_0, 1, 256, &codes_with(256, &[]), &bytes);

    // Element 0 is the top digit of byte 0: 2*81 + 40 = 202 gives 213. Element 129 is the last digit of byte 1: 122
    // gives 129. Element 161 is the top digit of byte 33, element 176 the second of byte 32: 121 + 27 = 148 gives
    // 156. Element 241 is the top digit of byte 49: 0*81 + 39 = 39 gives 42. Element 255 is the fourth of byte 51:
    // 120 + 3 = 123 gives 130.
    let codes = codes_with(256, &[(0, 2), (129, 2), (161, 2), (176, 2), (241, 0), (255, 2)]);
    bytes[0] = 213;
    bytes[1] = 129;
    bytes[33] = 213;
    bytes[32] = 156;
    bytes[49] = 42;
    bytes[51] = 130;
    assert_bytes(TernaryFormat::Tq1_0, 1, 256, &codes, &bytes);
}

#[test]
fn q2_0_puts_the_scale_first_and_four_consecutive_elements_in_a_byte() {
    let codes = codes_with(64, &[(0, 2), (1, 0), (4, 0), (7, 2), (63, 0)]);
    let mut bytes = ONE.to_vec();
    bytes.extend([0x55; 16]);
    bytes[2] = 0b01_01_00_10;
    bytes[3] = 0b10_01_01_00;
    bytes[17] = 0b00_01_01_01;
    assert_bytes(TernaryFormat::Q2_0, 1, 64, &codes, &bytes);
}

#[test]
fn hf_u8_strides_rows_by_a_quarter_of_the_matrix() {
    let codes = [
        [2, 0], //
        [1, 1],
        [0, 2],
        [1, 0],
        [2, 2],
        [0, 1],
        [1, 1],
        [2, 2],
    ];
    // Byte row 0 holds rows 0, 2, 4, 6; byte row 1 holds rows 1, 3, 5, 7.
    let bytes = [0b01_10_00_10, 0b01_10_10_00, 0b10_00_01_01, 0b10_01_00_01];
    assert_bytes(TernaryFormat::HfU8, 8, 2, codes.as_flattened(), &bytes);
}

#[test]
fn scales_come_from_their_blocks_even_when_the_first_is_zero() {
    let half = half::f16::from_f32(0.5).to_le_bytes();
    for (format, at) in [(TernaryFormat::Tq1_0, 52), (TernaryFormat::Tq2_0, 64), (TernaryFormat::Q2_0, 0)] {
        let block = format.block().unwrap();
        let mut bytes = pack(format, &vec![1; 3 * block], 1, 3 * block);
        let block_bytes = bytes.len() / 3;
        bytes[at..at + 2].copy_from_slice(&[0, 0]);
        bytes[block_bytes + at..][..2].copy_from_slice(&half);
        assert_eq!(unpack(format, &bytes, 1, 3 * block).unwrap().1, [0.0, 0.5, 1.0], "{format}");
        assert_eq!(format.tensor_scale(&bytes, 1, 3 * block), None);
    }
}

#[test]
fn i2_s_scale_lies_behind_the_codes_with_or_without_padding() {
    let format = TernaryFormat::I2s(I2sLayout::Block128);
    let mut bytes = Vec::new();
    format.pack(&[1; 128], 1, 128, 0.75, &mut bytes).unwrap();
    assert_eq!(bytes.len(), 128 / 4 + 32);
    assert_eq!(format.tensor_scale(&bytes, 1, 128), Some(0.75));
    bytes.truncate(128 / 4 + 4);
    assert_eq!(format.tensor_scale(&bytes, 1, 128), Some(0.75));
    assert!(unpack(format, &bytes, 1, 128).is_ok());
    bytes.pop();
    assert_eq!(format.tensor_scale(&bytes, 1, 128), None);
    assert!(matches!(unpack(format, &bytes, 1, 128), Err(PackError::Length { want: 36, got: 35, .. })));
}

#[test]
fn code_3_is_refused_where_it_stands() {
    for format in FORMATS {
        if format == TernaryFormat::Tq1_0 {
            continue;
        }
        let (rows, cols) = (8, 256);
        let mut bytes = pack(format, &vec![0; rows * cols], rows, cols);
        // Bytes of all zero codes are zero, except scales, so that setting two bits makes one code 3.
        let at = if format == TernaryFormat::Q2_0 { 2 } else { 1 };
        bytes[at] = 0b1100;
        let err = unpack(format, &bytes, rows, cols).unwrap_err();
        let want = match format {
            TernaryFormat::I2s(I2sLayout::Block128) => (0, 64 + 1),
            TernaryFormat::I2s(I2sLayout::Block64) => (0, 32 + 1),
            TernaryFormat::I2s(I2sLayout::Row4) => (2, 1),
            TernaryFormat::Tq2_0 => (0, 32 + 1),
            TernaryFormat::HfU8 => (2, 1),
            _ => (0, 1),
        };
        assert_eq!(err, PackError::InvalidCode { row: want.0, col: want.1 }, "{format:?}");
        let err = format.pack(&codes_with(rows * cols, &[(300, 3)]), rows, cols, 1.0, &mut bytes);
        assert_eq!(err, Err(PackError::InvalidCode { row: 1, col: 44 }), "{format:?}");
    }
}

#[test]
fn shapes_that_a_format_cannot_hold_are_refused() {
    for (format, rows, cols) in [
        (TernaryFormat::I2s(I2sLayout::Block128), 1, 192),
        (TernaryFormat::I2s(I2sLayout::Block64), 1, 96),
        (TernaryFormat::I2s(I2sLayout::Row4), 6, 128),
        (TernaryFormat::Tq1_0, 1, 128),
        (TernaryFormat::Tq2_0, 1, 3200),
        (TernaryFormat::Q2_0, 1, 32),
        (TernaryFormat::HfU8, 2, 64),
    ] {
        assert!(matches!(format.size_bytes(rows, cols), Err(PackError::Shape { .. })), "{format:?}");
        assert!(matches!(unpack(format, &[], rows, cols), Err(PackError::Shape { .. })), "{format:?}");
    }
    for format in FORMATS {
        for (rows, cols) in [(0, 256), (4, 0), (usize::MAX / 4 * 4, 256)] {
            assert!(matches!(format.size_bytes(rows, cols), Err(PackError::Shape { .. })), "{format:?}");
        }
    }
}

#[test]
fn buffers_of_the_wrong_length_are_refused() {
    let format = TernaryFormat::Tq2_0;
    let data = pack(format, &[1; 512], 2, 256);
    let mut codes = [0; 256];
    let mut scales = [0.0; 1];
    assert!(format.unpack_rows(&data, 2, 256, 1..2, &mut codes, &mut scales).is_ok());
    assert!(format.unpack_rows(&data[1..], 2, 256, 1..2, &mut codes, &mut scales).is_err());
    assert!(format.unpack_rows(&data, 2, 256, 1..2, &mut codes[1..], &mut scales).is_err());
    assert!(format.unpack_rows(&data, 2, 256, 1..2, &mut codes, &mut []).is_err());
    assert_eq!(
        format.unpack_rows(&data, 2, 256, 2..3, &mut codes, &mut scales),
        Err(PackError::RowRange { start: 2, end: 3, rows: 2 })
    );
    assert!(format.pack_rows(&codes[1..], 256, 1.0, &mut Vec::new()).is_err());
    assert!(format.pack_rows(&codes, 0, 1.0, &mut Vec::new()).is_err());
}

#[test]
fn scales_beyond_f16_are_refused() {
    for format in [TernaryFormat::Tq1_0, TernaryFormat::Tq2_0, TernaryFormat::Q2_0] {
        let err = format.pack(&[1; 256], 1, 256, 1e6, &mut Vec::new()).unwrap_err();
        assert_eq!(err, PackError::Scale { format: format.name(), scale: 1e6 });
    }
}

#[test]
fn layout_names_round_trip() {
    for layout in I2sLayout::ALL {
        assert_eq!(layout.to_string().parse(), Ok(layout));
    }
    assert!("block256".parse::<I2sLayout>().is_err());
}

#[test]
fn first_invalid_code_finds_each_place_in_a_byte() {
    let mut bytes = vec![0b10_10_10_10; 9000];
    assert_eq!(i2_s::first_invalid_code(&bytes), None);
    // Bits of two neighbouring codes are no code 3.
    bytes[3] = 0b01_10_01_10;
    assert_eq!(i2_s::first_invalid_code(&bytes), None);
    for at in [0, 4095, 4096, 8191, 8999] {
        for shift in [0, 2, 4, 6] {
            let mut bytes = bytes.clone();
            bytes[at] |= 3 << shift;
            assert_eq!(i2_s::first_invalid_code(&bytes), Some(at));
        }
    }
}

proptest! {
    #[test]
    fn unpack_inverts_pack(
        format_idx in 0..FORMATS.len(), row_groups in 1usize..4, col_groups in 1usize..4, seed: u64, scale in 0f32..9.0,
    ) {
        let format = FORMATS[format_idx];
        let (rows, cols) = match format {
            TernaryFormat::I2s(I2sLayout::Row4) | TernaryFormat::HfU8 => (4 * row_groups, 5 * col_groups),
            TernaryFormat::I2s(I2sLayout::Block128) => (row_groups, 128 * col_groups),
            _ => (row_groups, format.block().unwrap_or(64) * col_groups),
        };
        let mut state = seed;
        let codes: Vec<u8> = (0..rows * cols)
            .map(|_| {
                state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
                ((state >> 33) % 3) as u8
            })
            .collect();

        let mut bytes = Vec::new();
        format.pack(&codes, rows, cols, scale, &mut bytes).unwrap();
        prop_assert_eq!(bytes.len(), format.size_bytes(rows, cols).unwrap());
        let (unpacked, scales) = unpack(format, &bytes, rows, cols).unwrap();
        prop_assert_eq!(&unpacked, &codes);
        let d = half::f16::from_f32(scale).to_f32();
        prop_assert!(scales.iter().all(|&s| s == d));

        // Rows unpacked alone are the rows of the whole, and rows packed in groups give the same bytes.
        for row in 0..rows {
            let mut alone = vec![9; cols];
            let mut scales = vec![9.0; format.block().map_or(0, |block| cols / block)];
            format.unpack_rows(&bytes, rows, cols, row..row + 1, &mut alone, &mut scales).unwrap();
            prop_assert_eq!(&alone[..], &codes[row * cols..][..cols]);
        }
        let mut streamed = Vec::new();
        for group in codes.chunks(format.row_group(rows) * cols) {
            format.pack_rows(group, cols, scale, &mut streamed).unwrap();
        }
        format.pack_trailer(scale, &mut streamed);
        prop_assert_eq!(streamed, bytes);
    }
}

#[test]
fn every_message_says_what_to_do_next() {
    let format = "tq1_0";
    let all = [
        PackError::Shape { format, rows: 1, cols: 1, rule: "the columns must be a multiple of 256" },
        PackError::Length { what: "the output", want: 2, got: 1 },
        PackError::RowRange { start: 1, end: 3, rows: 2 },
        PackError::InvalidCode { row: 0, col: 1 },
        PackError::Scale { format, scale: 1e9 },
    ];
    for error in all {
        match error {
            PackError::Shape { .. }
            | PackError::Length { .. }
            | PackError::RowRange { .. }
            | PackError::InvalidCode { .. }
            | PackError::Scale { .. } => {}
        }
        let message = error.to_string();
        let advice = message.split_once("; ").map_or("", |(_, advice)| advice);
        let says = ["ask", "give", "try", "use"].iter().any(|verb| advice.starts_with(verb));
        assert!(says || message.contains(" must be "), "no advice in: {message}");
    }
}
