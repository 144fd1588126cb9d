// From a file's bytes to upright pixels in sRGB on white, as far as this browser opens it.

// The first bytes of each format, as in core/image.py.
const FORMATS = {
  jpeg: /^\xff\xd8\xff/,
  png: /^\x89PNG\r\n\x1a\n/,
  webp: /^RIFF....WEBP/s,
  avif: /^....ftyp(....){0,9}?avi[fs]/s,
  heif: /^....ftyp(....){0,9}?he[iv][cmsx]/s,
};
const EVERYWHERE = ["jpeg", "png", "webp"];  // What every browser opens, so that a failure is the file's

// Decode a file. Throws the code of an error, one of the service's, or `not-readable-here`.
export async function decode(file) {
  if (!file.size) throw "empty-image";
  const first = await file.slice(0, 64).arrayBuffer().catch(() => { throw "damaged-image"; });  // A folder, or it was moved.
  const beginning = String.fromCharCode(...new Uint8Array(first));
  const format = Object.keys(FORMATS).find((name) => FORMATS[name].test(beginning));
  if (!format) throw "not-an-image";
  try {
    return await createImageBitmap(file, { imageOrientation: "from-image" });
  } catch {
    throw EVERYWHERE.includes(format) ? "damaged-image" : "not-readable-here";
  }
}

// A smaller copy as JPEG, without what a camera writes beside the picture (place, time).
export function shrink(bitmap, side = 1024) {
  const scale = Math.min(1, side / Math.max(bitmap.width, bitmap.height));
  const [width, height] = [bitmap.width, bitmap.height].map((length) => Math.max(1, Math.round(length * scale)));
  const canvas = new OffscreenCanvas(width, height);
  const pen = canvas.getContext("2d");
  pen.imageSmoothingQuality = "high";
  pen.fillStyle = "#fff";
  pen.fillRect(0, 0, width, height);
  pen.drawImage(bitmap, 0, 0, width, height);
  return canvas.convertToBlob({ type: "image/jpeg", quality: 0.95 });
}

// The pixels of a decoded picture, some rows at a time.
export function pixelsOf(bitmap) {
  const { width, height } = bitmap;
  let canvas, pen;
  const rows = (top, count) => {
    if (canvas?.height !== count) {
      canvas = new OffscreenCanvas(width, count);
      pen = canvas.getContext("2d", { willReadFrequently: true, colorSpace: "srgb" });
    }
    pen.fillStyle = "#fff";
    pen.fillRect(0, 0, width, count);
    pen.drawImage(bitmap, 0, -top);
    return pen.getImageData(0, 0, width, count).data;
  };
  return { width, height, rows };
}
