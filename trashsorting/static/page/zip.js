// A zip without compression, for photographs, which are compressed already.
const TABLE = Uint32Array.from({ length: 256 }, (_, value) => {
  for (let bit = 0; bit < 8; bit++) value = value & 1 ? 0xedb88320 ^ (value >>> 1) : value >>> 1;
  return value;
});

function checksum(bytes) {
  let sum = 0xffffffff;
  for (const byte of bytes) sum = TABLE[(sum ^ byte) & 0xff] ^ (sum >>> 8);
  return (sum ^ 0xffffffff) >>> 0;
}

// Numbers of two and of four bytes, little-endian, as [value, bytes].
function pack(...numbers) {
  const view = new DataView(new ArrayBuffer(numbers.reduce((sum, [, size]) => sum + size, 0)));
  let at = 0;
  for (const [value, size] of numbers) {
    if (size === 2) view.setUint16(at, value, true);
    else view.setUint32(at, value, true);
    at += size;
  }
  return view.buffer;
}

const UTF8 = 0x800, VERSION = 20, DAY = 0x21;  // The first of January 1980, the earliest day of a zip

// Files as [path, blob] in one zip.
export async function zip(files) {
  const parts = [], list = [];
  let position = 0;
  for (const [path, blob] of files) {
    const name = new TextEncoder().encode(path);
    const about = [[VERSION, 2], [UTF8, 2], [0, 2], [0, 2], [DAY, 2], [checksum(new Uint8Array(await blob.arrayBuffer())), 4],
      [blob.size, 4], [blob.size, 4], [name.length, 2], [0, 2]];
    const head = pack([0x04034b50, 4], ...about);
    list.push(pack([0x02014b50, 4], [VERSION, 2], ...about, [0, 2], [0, 2], [0, 2], [0, 4], [position, 4]), name);
    parts.push(head, name, blob);
    position += head.byteLength + name.length + blob.size;
  }
  const size = list.reduce((sum, part) => sum + part.byteLength, 0);
  const end = pack([0x06054b50, 4], [0, 2], [0, 2], [files.length, 2], [files.length, 2], [size, 4], [position, 4], [0, 2]);
  return new Blob([...parts, ...list, end], { type: "application/zip" });
}
