// What each shell runs to complete a command line of ours. It asks `xentool complete`, which completions.ts answers: a
// line for each candidate, with its description behind a tab; `:file` and `:directory` stand for what the shell knows.
import type { Shell } from "./shells.ts";

const BASH = `_xentool() {
  local cur=\${COMP_WORDS[COMP_CWORD]} candidate names
  [[ $cur == = ]] && cur=
  COMPREPLY=()
  while IFS=$'\t' read -r candidate _; do
    case $candidate in
      :file) compopt -o filenames; mapfile -t names < <(compgen -f -- "$cur"); COMPREPLY+=("\${names[@]}") ;;
      :directory) compopt -o filenames; mapfile -t names < <(compgen -d -- "$cur"); COMPREPLY+=("\${names[@]}") ;;
      *) COMPREPLY+=("$candidate") ;;
    esac
  done < <("$1" complete -- "\${COMP_WORDS[@]:1:COMP_CWORD}" 2>/dev/null)
}
complete -F _xentool xentool
`;

const ZSH = `#compdef xentool
_xentool() {
  local line
  local -a values
  for line in "\${(@f)$("$words[1]" complete -- "\${(@)words[2,CURRENT]}" 2>/dev/null)}"; do
    case $line in
      "") ;;
      :file) _files ;;
      :directory) _files -/ ;;
      *) values+=("\${\${line%%$'\t'*}//:/\\:}:\${line#*$'\t'}") ;;
    esac
  done
  (( $#values )) && _describe xentool values
}
if [[ $funcstack[1] == _xentool ]]; then _xentool "$@"; else compdef _xentool xentool; fi
`;

const FISH = `function __xentool_complete
    set -l words (commandline -opc) (commandline -ct)
    for line in ($words[1] complete -- $words[2..-1] 2>/dev/null)
        switch $line
            case :file
                __fish_complete_path (commandline -ct)
            case :directory
                __fish_complete_directories (commandline -ct)
            case '*'
                echo $line
        end
    end
end
complete -c xentool -f -a '(__xentool_complete)'
`;

/** The script that makes `shell` complete our command lines. */
export function completionScript(shell: Shell): string {
  return { bash: BASH, zsh: ZSH, fish: FISH }[shell];
}
