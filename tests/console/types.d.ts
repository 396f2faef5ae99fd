// Types that the console's files have in common; only `tsc` reads this.

type Json = Record<string, any>;
type Child = Node | string | number | null | undefined | false;
type Go = (params: URLSearchParams, path?: string[]) => void;
type Column = { name: string; class?: string; quiet?: boolean };

interface Context {
  /** Where the page is. */
  root: HTMLElement;
  /** Behind the page's name. */
  path: string[];
  params: URLSearchParams;
  /** To the same page, with other parameters. */
  go: Go;
  reload: () => void;
  /** Aborted when the page is left. */
  signal: AbortSignal;
}
