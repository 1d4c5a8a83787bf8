// Importing the shim "with { type: 'file' }" yields its path.
declare module "*.so" {
  const path: string;
  export default path;
}
