// An import of the shim "with { type: 'file' }" is its path.
declare module "*.so" {
  const path: string;
  export default path;
}
