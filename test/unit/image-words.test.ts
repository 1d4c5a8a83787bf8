// What a toolstack's `params` and `mode` say of an image: which file, and whether somebody insists.
import { expect, test } from "bun:test";
import { parseImageWords, type ImageWords } from "../../src/blkback/image/image-words.ts";

test.each([
  ["/a.img", "w", "/a.img", false, undefined],
  ["aio:/a.img", "w", "/a.img", false, undefined],
  ["file:/a.img", "r", "/a.img", false, undefined],
  ["raw:/a.img", "w", "/a.img", false, "raw"],
  ["w!:/a.img", "w", "/a.img", true, undefined],
  ["w!:raw:/a.img", "w", "/a.img", true, "raw"],
  ["aio:raw:/a.img", "w", "/a.img", false, "raw"],
  ["/a.img", "w!", "/a.img", true, undefined],
  ["nbd+unix:///vm7?socket=/run/s", "w", "nbd+unix:///vm7?socket=/run/s", false, undefined],
  ["qcow2:/a.qcow2", "w", "/a.qcow2", false, "qcow2"],
  ["rbd:pool/vm7", "w", "pool/vm7", false, "rbd"],
  ["rbd:pool/space/vm7", "r", "pool/space/vm7", false, "rbd"],
  ["vhdx:/a:b", "r", "/a:b", false, "vhdx"],
  ["/dir/raw:/w!:b", "w", "/dir/raw:/w!:b", false, undefined],
])("params %j with mode %j", (params, mode, path, shared, format) => {
  expect(parseImageWords(params, mode)).toEqual({ path, shared, format: format as ImageWords["format"] });
});

test.each([
  "qcow3:/a.img",
  "pool/vm7",
  "rbd:vm7",
  "rbd:a/b/c/d",
  "a.img",
  "raw:",
  "",
  null,
  "w:/a.img",
  "raw:./a.img",
])("params %j: refused", (params) => {
  expect(() => parseImageWords(params, "w")).toThrow("is not an absolute path of an image");
});

test.each([
  ["raw:qcow2:/a.img", "names several formats"],
  ["qcow2:nbd://host", "an NBD export is served as it is"],
])("params %j: refused, because it %s", (params, why) => {
  expect(() => parseImageWords(params, "w")).toThrow(why);
});
